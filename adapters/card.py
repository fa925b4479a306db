def write_card(out, task, recipe, facts, base):
    (out/"README.md").write_text(str((recipe,facts)))
