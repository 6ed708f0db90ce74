"""Plot style and heat map, for every room that draws."""
