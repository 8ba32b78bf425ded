"""What is stored, as people ask for it: pure calculations on series. Knows neither Ray nor HTTP nor one store."""
