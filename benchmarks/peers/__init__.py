"""The workloads in other frameworks, in the idiom of each."""
