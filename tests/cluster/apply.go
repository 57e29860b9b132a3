package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// parse reads the objects of a YAML text.
func parse(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		switch err := decoder.Decode(object); {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, err
		case len(object.Object) > 0:
			objects = append(objects, object)
		}
	}
}

// apply makes the cluster's objects as given, like `kubectl apply --server-side`.
func (c *Cluster) apply(ctx context.Context, objects ...*unstructured.Unstructured) error {
	for _, object := range objects {
		// What the server makes of it is written into what it was given.
		sent := client.ApplyConfigurationFromUnstructured(object.DeepCopy())
		err := c.client.Apply(ctx, sent, client.FieldOwner("cluster"), client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// installCRDs installs the Gateway API's CRDs of the channel and waits until they are served.
func (c *Cluster) installCRDs(ctx context.Context) error {
	if c.channel == "none" {
		return nil
	}
	objects, err := c.crds(c.channel)
	if err != nil {
		return err
	}
	return c.install(ctx, objects)
}

// crds reads the CRDs of a channel, and the admission policy that comes with them.
func (c *Cluster) crds(channel string) ([]*unstructured.Unstructured, error) {
	files, err := filepath.Glob(filepath.Join(c.bin, "crds", channel, "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CRDs in %s/crds/%s", c.bin, channel)
	}
	var objects []*unstructured.Unstructured
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		more, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		objects = append(objects, more...)
	}
	return objects, nil
}

// install applies CRDs, and what else there is after them, and waits until the CRDs are served.
func (c *Cluster) install(ctx context.Context, objects []*unstructured.Unstructured) error {
	group, within := errgroup.WithContext(ctx)
	for _, object := range objects {
		group.Go(func() error { return c.apply(within, object) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return c.await(ctx, "CRDs served", time.Minute, func() error {
		for _, object := range objects {
			if object.GetKind() != "CustomResourceDefinition" {
				continue
			}
			crd := &apiextensionsv1.CustomResourceDefinition{}
			if err := c.client.Get(ctx, key("", object.GetName()), crd); err != nil {
				return err
			}
			if !slices.ContainsFunc(crd.Status.Conditions, established) {
				return fmt.Errorf("%s is not established", crd.Name)
			}
		}
		return nil
	})
}

func established(condition apiextensionsv1.CustomResourceDefinitionCondition) bool {
	return condition.Type == apiextensionsv1.Established &&
		condition.Status == apiextensionsv1.ConditionTrue
}
