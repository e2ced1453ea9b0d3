"""The matrices of a problem, one file each, and what they are made by. Knows no method of linear algebra."""
