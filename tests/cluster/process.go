package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A Process is one of the cluster's programs. What it prints goes to a file of its name in the
// folder of logs, which a later process of the name goes on with.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	// ended is closed when the process has been waited for; err is set before.
	ended chan struct{}
	err   error
}

// start starts a program; its first word may be a path.
func (c *Cluster) start(name string, env []string, argv ...string) (*Process, error) {
	p := &Process{name: name, log: filepath.Join(c.logs, name+".log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes = append(c.processes, p)
	return p, nil
}

// alive is an error that says how the process ended, if it has.
func (p *Process) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %v (see %s)", p.name, p.err, p.log)
	default:
		return nil
	}
}

// kill ends the process at once and waits until it is gone.
func (p *Process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop asks the process to end and reports how it did; after the time given it is killed.
func (p *Process) stop(patience time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return p.err
	case <-time.After(patience):
		p.kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM", p.name, patience)
	}
}

// tails copies the end of every log.
func (c *Cluster) tails(to io.Writer) {
	const most = 4000
	logs, _ := filepath.Glob(filepath.Join(c.logs, "*.log"))
	for _, log := range logs {
		file, err := os.Open(log)
		if err != nil {
			continue
		}
		if size, err := file.Seek(0, io.SeekEnd); err == nil {
			_, _ = file.Seek(max(size-most, 0), io.SeekStart)
		}
		fmt.Fprintf(to, "\n==== the end of %s\n", log)
		_, _ = io.Copy(to, file)
		file.Close()
	}
	fmt.Fprintf(to, "\n==== all logs are in %s\n", c.logs)
}

// exists tells whether there is a file.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}
