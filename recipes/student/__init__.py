"""What do students learn from an RL teacher's traces, against other pipelines, at two sizes of data?"""
