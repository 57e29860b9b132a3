package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1alpha2 "sigs.k8s.io/gateway-api/apis/v1alpha2"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
)

// Options say what a cluster is made of.
type Options struct {
	bin       string
	channel   string
	logs      string
	manifests string
	ringway   string
}

func defaults() Options {
	return Options{
		bin:       os.Getenv("TESTBED_BIN"),
		channel:   "standard",
		logs:      os.Getenv("CLUSTER_LOGS"),
		manifests: os.Getenv("CLUSTER_MANIFESTS"),
		ringway:   os.Getenv("RINGWAY_BIN"),
	}
}

func (o *Options) register(flags *flag.FlagSet) {
	flags.StringVar(&o.bin, "bin", o.bin, "folder of testbed, echo-basic and crds/")
	flags.StringVar(&o.channel, "channel", o.channel,
		"which Gateway API CRDs to install: standard, experimental or none")
	flags.StringVar(&o.logs, "logs", o.logs, "folder for the logs; a new one in /tmp if empty")
	flags.StringVar(&o.manifests, "manifests", o.manifests,
		"folder with Ringway's kustomization.yaml")
	flags.StringVar(&o.ringway, "ringway", o.ringway, "the binary of Ringway; none if empty")
}

// A Cluster is a running control plane with one node.
type Cluster struct {
	Options
	kubeconfig string
	config     *rest.Config
	client     client.Client
	typed      kubernetes.Interface
	ca         *authority
	etcd       *Process
	server     *Process
	pods       *podRunner
	ringways   []*Replica

	mu        sync.Mutex
	processes []*Process
	began     time.Time
}

// Start starts a cluster with the CRDs of the channel and waits until it takes work. The cluster is
// returned with an error too, for its logs.
func Start(ctx context.Context, options Options) (*Cluster, error) {
	c := &Cluster{Options: options, began: time.Now()}
	if c.logs == "" {
		folder, err := os.MkdirTemp("", "cluster-")
		if err != nil {
			return c, err
		}
		c.logs = folder
	}
	if err := os.MkdirAll(c.logs, 0o755); err != nil {
		return c, err
	}
	for _, step := range []func(context.Context) error{
		c.certify, c.startEtcd, c.startServer, c.startControllers, c.startPods,
		c.awaitServiceAccount, c.installCRDs,
	} {
		if err := step(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

// Stop ends Ringway as a node would, and everything else at once: its data is thrown away.
func (c *Cluster) Stop() error {
	var problems []error
	for _, replica := range c.ringways {
		if replica.process.alive() == nil {
			problems = append(problems, replica.process.stop(20*time.Second))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.processes {
		if p.alive() == nil {
			p.kill()
		}
	}
	return errors.Join(problems...)
}

func (c *Cluster) say(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "cluster: "+format+"\n", values...)
}

func (c *Cluster) certify(context.Context) error {
	ca, err := newAuthority(state)
	if err != nil {
		return err
	}
	c.ca = ca
	const masters = "system:masters"
	return errors.Join(
		ca.serviceAccountKeys(),
		ca.issue("admin", "admin", masters),
		// As a master: with fewer rights it would need a ServiceAccount for each controller.
		ca.issue("controllers", "system:kube-controller-manager", masters),
		ca.issue("to-kubelet", "apiserver-kubelet", masters),
		ca.issue("kubelet", "system:node:"+nodeName, "system:nodes", nodeName, nodeAddress),
		ca.issue("apiserver", "apiserver", "", "localhost", "kubernetes", "kubernetes.default",
			"kubernetes.default.svc", "127.0.0.1", nodeAddress, "10.96.0.1"),
		c.connect(),
	)
}

// connect writes the administrator's kubeconfig and makes the clients.
func (c *Cluster) connect() error {
	c.kubeconfig = c.writeKubeconfig("admin")
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return err
	}
	// The limits are meant to spare a server that others use too.
	config.QPS = -1
	c.config = config
	if c.typed, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if err = errors.Join(
		apiextensionsv1.AddToScheme(scheme.Scheme),
		gatewayv1.Install(scheme.Scheme),
		gatewayv1beta1.Install(scheme.Scheme),
		gatewayv1alpha2.Install(scheme.Scheme),
	); err != nil {
		return err
	}
	c.client, err = client.New(config, client.Options{Scheme: scheme.Scheme})
	return err
}

func (c *Cluster) writeKubeconfig(user string) string {
	path := filepath.Join(state, user+".kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: cluster
contexts: [{name: cluster, context: {cluster: cluster, user: %[1]s}}]
clusters:
- name: cluster
  cluster: {server: "https://127.0.0.1:6443", certificate-authority: %[2]s/ca.crt}
users:
- name: %[1]s
  user: {client-certificate: %[2]s/%[1]s.crt, client-key: %[2]s/%[1]s.key}
`, user, state)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		panic(err)
	}
	return path
}

func (c *Cluster) testbed() string { return filepath.Join(c.bin, "testbed") }

func (c *Cluster) startEtcd(context.Context) (err error) {
	c.etcd, err = c.start("etcd", nil, c.testbed(), "etcd", filepath.Join(state, "etcd"), etcdURL)
	return err
}

const etcdURL = "http://127.0.0.1:2379"

// startServer starts kube-apiserver and waits until it is ready. It is also how one that was killed
// is started again.
func (c *Cluster) startServer(ctx context.Context) (err error) {
	at := c.ca.path
	c.server, err = c.start("kube-apiserver", nil, c.testbed(), "kube-apiserver",
		"--etcd-servers="+etcdURL,
		"--advertise-address="+nodeAddress,
		"--bind-address=0.0.0.0",
		"--secure-port=6443",
		"--client-ca-file="+at("ca.crt"),
		"--tls-cert-file="+at("apiserver.crt"),
		"--tls-private-key-file="+at("apiserver.key"),
		"--service-account-key-file="+at("sa.pub"),
		"--service-account-signing-key-file="+at("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-cluster-ip-range="+serviceRange,
		"--authorization-mode=RBAC",
		"--allow-privileged=true",
		"--kubelet-client-certificate="+at("to-kubelet.crt"),
		"--kubelet-client-key="+at("to-kubelet.key"),
		"--kubelet-certificate-authority="+at("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--enable-priority-and-fairness=false",
	)
	if err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(at("admin.crt"), at("admin.key"))
	if err != nil {
		return err
	}
	// Whether it is the right server is not the question here.
	probe := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate},
		},
	}}
	return c.await(ctx, "kube-apiserver ready", time.Minute, func() error {
		if err := errors.Join(c.etcd.alive(), c.server.alive()); err != nil {
			return fatal{err}
		}
		response, err := probe.Get("https://127.0.0.1:6443/readyz")
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

func (c *Cluster) startControllers(context.Context) error {
	const controllers = "deployment-controller,replicaset-controller,endpointslice-controller," +
		"endpoints-controller,serviceaccount-controller,serviceaccount-token-controller," +
		"root-ca-certificate-publisher-controller,namespace-controller,garbage-collector-controller"
	_, err := c.start("kube-controller-manager", nil, c.testbed(), "kube-controller-manager",
		"--kubeconfig="+c.writeKubeconfig("controllers"),
		"--leader-elect=false",
		"--use-service-account-credentials=false",
		"--service-account-private-key-file="+c.ca.path("sa.key"),
		"--root-ca-file="+c.ca.path("ca.crt"),
		"--bind-address=127.0.0.1",
		"--concurrent-gc-syncs=4",
		"--kube-api-qps=200",
		"--kube-api-burst=400",
		"--controllers="+controllers,
	)
	return err
}

func (c *Cluster) awaitServiceAccount(ctx context.Context) error {
	return c.await(ctx, "ServiceAccount default", time.Minute, func() error {
		return c.client.Get(ctx, key("default", "default"), &corev1.ServiceAccount{})
	})
}

func key(namespace, name string) client.ObjectKey {
	return client.ObjectKey{Namespace: namespace, Name: name}
}

// fatal is an error that waiting longer won't mend.
type fatal struct{ error }

// await asks again and again until there is no error, and fails with the last one.
func (c *Cluster) await(
	ctx context.Context, what string, patience time.Duration, ask func() error,
) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if stop := (fatal{}); errors.As(err, &stop) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, patience, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
