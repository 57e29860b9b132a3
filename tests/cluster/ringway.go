package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

const (
	className      = "gateway-conformance"
	controllerName = "ringway.dev/gateway-controller"
	// tokens is where a container finds the ServiceAccount that it runs as.
	tokens = "/run/secrets/kubernetes.io/serviceaccount"
	// config is where its volumes are.
	config = state + "/ringway"
)

// A Replica is one Ringway: the first in the node's own network, each other in a network namespace
// of its own, as it would be on another node.
type Replica struct {
	process *Process
	number  int
}

// startRingway installs Ringway's manifests and starts one replica as they say: with the arguments
// and variables of their DaemonSet, as their ServiceAccount, and with no right that their RBAC does
// not give. It waits until the test's GatewayClass is accepted.
func (c *Cluster) startRingway(ctx context.Context) error {
	objects, err := c.kustomization()
	if err != nil {
		return err
	}
	// The class is applied with the Gateway API's kinds, or not at all when they are not there.
	var crds, others []*unstructured.Unstructured
	for _, object := range objects {
		switch object.GetKind() {
		case "CustomResourceDefinition":
			crds = append(crds, object)
		case "GatewayClass":
		default:
			others = append(others, object)
		}
	}
	if err := errors.Join(c.install(ctx, crds), c.apply(ctx, others...)); err != nil {
		return err
	}
	if err := c.writeToken(ctx); err != nil {
		return err
	}
	class := &gatewayv1.GatewayClass{
		ObjectMeta: metav1.ObjectMeta{Name: className},
		Spec:       gatewayv1.GatewayClassSpec{ControllerName: controllerName},
	}
	if err := c.client.Create(ctx, class); err != nil {
		return err
	}
	replica, err := c.addReplica(ctx)
	if err != nil {
		return err
	}
	return c.await(ctx, "GatewayClass accepted", 30*time.Second, func() error {
		if err := replica.process.alive(); err != nil {
			return fatal{err}
		}
		if err := c.client.Get(ctx, key("", className), class); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(class.Status.Conditions, "Accepted") {
			return fmt.Errorf("conditions are %v", class.Status.Conditions)
		}
		return nil
	})
}

// kustomization reads the objects that a kustomization.yaml lists, as they are in their files.
func (c *Cluster) kustomization() ([]*unstructured.Unstructured, error) {
	text, err := os.ReadFile(filepath.Join(c.manifests, "kustomization.yaml"))
	if err != nil {
		return nil, err
	}
	var list struct{ Resources []string }
	if err := yaml.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, name := range list.Resources {
		text, err := os.ReadFile(filepath.Join(c.manifests, name))
		if err != nil {
			return nil, err
		}
		more, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, more...)
	}
	return objects, nil
}

// daemonSet finds the manifests' DaemonSet.
func (c *Cluster) daemonSet() (*appsv1.DaemonSet, error) {
	objects, err := c.kustomization()
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		if object.GetKind() == "DaemonSet" {
			set := &appsv1.DaemonSet{}
			return set, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, set)
		}
	}
	return nil, fmt.Errorf("no DaemonSet in %s", c.manifests)
}

// writeToken puts the ServiceAccount's token where a container has it.
func (c *Cluster) writeToken(ctx context.Context) error {
	if target, err := filepath.EvalSymlinks("/var/run"); err != nil || target != "/run" {
		return fmt.Errorf("/var/run is not /run, but %s: tokens would be written outside", target)
	}
	set, err := c.daemonSet()
	if err != nil {
		return err
	}
	account := set.Spec.Template.Spec.ServiceAccountName
	request := &authenticationv1.TokenRequest{}
	request, err = c.typed.CoreV1().ServiceAccounts(set.Namespace).CreateToken(
		ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(c.ca.path("ca.crt"))
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"ca.crt": string(authority), "namespace": set.Namespace, "token": request.Status.Token,
	} {
		if err := os.MkdirAll(tokens, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tokens, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// addReplica starts one more Ringway.
func (c *Cluster) addReplica(ctx context.Context) (*Replica, error) {
	replica := &Replica{number: len(c.ringways)}
	if replica.number > 0 {
		err := netns(replica.name(), replica.address(),
			"route add local "+gatewayPool+" dev lo")
		if err != nil {
			return nil, err
		}
	}
	c.ringways = append(c.ringways, replica)
	return replica, c.startReplica(replica)
}

func (r *Replica) name() string { return "ringway" + strconv.Itoa(r.number) }

// address is that of the node which the replica is on.
func (r *Replica) address() string { return "10.88.0." + strconv.Itoa(r.number+1) }

// startReplica starts a replica's process, the first time or again.
func (c *Cluster) startReplica(r *Replica) error {
	set, err := c.daemonSet()
	if err != nil {
		return err
	}
	if err := c.writeConfig(set); err != nil {
		return err
	}
	container := set.Spec.Template.Spec.Containers[0]
	env := []string{"KUBERNETES_SERVICE_HOST=" + nodeAddress, "KUBERNETES_SERVICE_PORT=6443"}
	for _, variable := range container.Env {
		value, err := r.value(variable, set.Namespace)
		if err != nil {
			return err
		}
		env = append(env, variable.Name+"="+value)
	}
	argv := []string{c.ringway}
	if r.number > 0 {
		argv = []string{"ip", "netns", "exec", r.name(), c.ringway}
	}
	for _, argument := range container.Args {
		argv = append(argv, realPaths(container, config, argument))
	}
	argv = append(argv, "--address-pool", gatewayPool)
	r.process, err = c.start(r.name(), env, argv...)
	return err
}

// writeConfig writes the ConfigMaps that the DaemonSet mounts.
func (c *Cluster) writeConfig(set *appsv1.DaemonSet) error {
	for _, volume := range set.Spec.Template.Spec.Volumes {
		if volume.ConfigMap == nil {
			return fmt.Errorf("volume %s is no ConfigMap", volume.Name)
		}
		found := &corev1.ConfigMap{}
		err := c.client.Get(context.Background(), key(set.Namespace, volume.ConfigMap.Name), found)
		if err != nil {
			return err
		}
		folder := filepath.Join(config, volume.Name)
		if err := writeData(folder, volume.ConfigMap.Items, textOf(found)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replica) value(variable corev1.EnvVar, namespace string) (string, error) {
	if variable.ValueFrom == nil || variable.ValueFrom.FieldRef == nil {
		return variable.Value, nil
	}
	switch path := variable.ValueFrom.FieldRef.FieldPath; path {
	case "spec.nodeName":
		return nodeName, nil
	case "metadata.name":
		return r.name(), nil
	case "metadata.namespace":
		return namespace, nil
	case "status.podIP", "status.hostIP":
		return r.address(), nil
	default:
		return "", fmt.Errorf("variable %s: no value for %s", variable.Name, path)
	}
}
