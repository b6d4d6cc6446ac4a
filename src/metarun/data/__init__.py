"""Where tasks come from: pools of class images, function families, and episodes drawn from them by number."""
