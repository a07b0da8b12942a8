package main

func workerChecks() ([]check, error) { return nil, nil }
func callerChecks() ([]check, error) { return nil, nil }
