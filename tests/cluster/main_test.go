package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
)

// the is the cluster of this run, which all tests share.
var the *Cluster

// TestMain runs the tests inside one cluster, with the options of the environment. Ringway is
// started by the first test that asks for it.
func TestMain(m *testing.M) {
	runStandIn()
	options := defaults()
	options.register(flag.CommandLine)
	flag.Parse()
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
	os.Exit(run(m, options))
}

func run(m *testing.M, options Options) (status int) {
	c, err := Start(context.Background(), options)
	the = c
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		status = 1
	} else {
		status = m.Run()
	}
	if err := c.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		status = 1
	}
	if status != 0 {
		c.tails(os.Stderr)
	}
	return status
}

var startedRingway = sync.OnceValue(func() error {
	return the.startRingway(context.Background())
})

// withRingway returns the cluster with Ringway running in it. A test that fails shows what Ringway
// has logged since.
func withRingway(t *testing.T) *Cluster {
	t.Helper()
	if the.ringway == "" {
		t.Skip("no binary of Ringway: RINGWAY_BIN is empty")
	}
	if err := startedRingway(); err != nil {
		t.Fatal(err)
	}
	log := the.ringways[0].process.log
	before, err := os.Stat(log)
	must(t, err)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		text, err := os.ReadFile(log)
		must(t, err)
		t.Logf("Ringway has logged since:\n%s", text[before.Size():])
	})
	return the
}
