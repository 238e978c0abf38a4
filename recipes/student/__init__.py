"""What do students learn from an RL teacher's traces, compared with other pipelines, at two data sizes?"""
