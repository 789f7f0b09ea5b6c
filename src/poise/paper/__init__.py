"""The paper, executable: its tables, figures and claims as jobs, with its numbers beside ours."""
