"""Operations whose derivatives, of any order, consist of the same operations."""
