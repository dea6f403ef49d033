"""The service under Ray Serve: several replicas on one machine, without Kubernetes."""
