"""What several algorithms share, or what one needs beside its equations."""
