def draw(r,h): return ("a","b")
def lexicon_words(a): return set()
