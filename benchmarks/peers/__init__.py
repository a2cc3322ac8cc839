"""The same workloads in other frameworks, each as its own users write it."""
