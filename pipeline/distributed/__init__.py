"""One cell trained by several processes, its ranks: how they meet, what they exchange, batch norm over all of them."""
