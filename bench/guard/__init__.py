"""The regression guard: instructions of fixed hot paths, of the change and of what it was made from, side by side.

Instructions are the same on a busy machine; they are not the same on another processor, so that both sides are counted
here and now. - paths: what is counted; marks.c: where counting begins and ends; compare: the two sides, the tolerance
"""
