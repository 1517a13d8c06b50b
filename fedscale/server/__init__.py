"""What the server does beside federating: stage 1 (`caption`, `pretrain`), stage 3 (`align`), and fetching teachers.

No stage imports another stage; they meet in the run folder's files.
"""
