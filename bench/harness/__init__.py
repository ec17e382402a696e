"""How contenders are run, checked, timed and reported."""
