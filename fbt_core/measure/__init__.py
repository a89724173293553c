"""Measuring tools beside the engine: costs, survey of timm, features of networks, check of a data set."""
