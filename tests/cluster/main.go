// A Kubernetes cluster without containers, for as long as one command runs.
//
// etcd, kube-apiserver and kube-controller-manager run as processes, and so does what stands in
// for a kubelet: each Pod is a network namespace with a real program in it. All of it, Ringway and
// the command live in namespaces of their own, which end with the last of them: nothing is left
// behind, however it ends, and several clusters may run side by side.
//
//	cluster [options] COMMAND [ARGUMENT...]
//
// The command finds the cluster through KUBECONFIG and its state and logs through CLUSTER_LOGS.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"
)

func main() {
	runStandIn()
	options := defaults()
	options.register(flag.CommandLine)
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: cluster [options] COMMAND [ARGUMENT...]")
		flag.PrintDefaults()
		os.Exit(2)
	}
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
	status, err := inCluster(options, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
	}
	os.Exit(status)
}

// inCluster starts a cluster, runs a command in it and returns the command's exit status, or 1 with
// an error when there was no cluster to run it in.
func inCluster(options Options, command []string) (int, error) {
	ctx := context.Background()
	start := time.Now()
	c, err := Start(ctx, options)
	if err == nil && options.ringway != "" {
		err = c.startRingway(ctx)
	}
	if err != nil {
		c.tails(os.Stderr)
		return 1, err
	}
	c.say("ready after %.1f s", time.Since(start).Seconds())
	run := exec.Command(command[0], command[1:]...)
	run.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "CLUSTER_LOGS="+c.logs)
	run.Stdin, run.Stdout, run.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = run.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, c.Stop()
	case errors.As(err, &exit):
		c.tails(os.Stderr)
		return max(exit.ExitCode(), 1), nil
	default:
		return 1, err
	}
}
