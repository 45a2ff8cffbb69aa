"""What a schedule would come to, without training: the walk, its accounts, and the least there could be.

Decided here: nothing; it asks scheduling who trains and emissions what a gram is.
"""
