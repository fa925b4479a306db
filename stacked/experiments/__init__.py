"""What is tried on requests to a key: which arm answers whom, and what follows from the answers.

Pure: it must not know engines, HTTP, the disk, or what is served.
"""
