"""The product every low-bit format shares: load packed words, decode them in registers, multiply on matrix units."""
