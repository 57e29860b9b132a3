package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A new certificate in a Secret is what the next client gets; a session under the old one goes on.
func TestSecretRotation(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "echo", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	secret := certificate(t, namespace, "first")
	must(t, the.client.Create(t.Context(), secret))
	address := net.JoinHostPort(gateway(t, namespace, "rotation", `{
		name: tls, protocol: TLS, port: 9443, hostname: echo.example.com,
		tls: {mode: Terminate, certificateRefs: [{name: certificate}]}}`), "9443")
	applied(t, namespace, `
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: rotation}
spec:
  parentRefs: [{name: rotation}]
  hostnames: [echo.example.com]
  rules: [{backendRefs: [{name: echo, port: 3000}]}]
`)
	held := presented(t, address, "first")
	defer held.conn.Close()

	secret = certificate(t, namespace, "second")
	must(t, the.client.Update(t.Context(), secret))
	presented(t, address, "second").conn.Close()
	if err := held.ping(); err != nil {
		t.Errorf("a session under the old certificate was lost: %v", err)
	}
}

// certificate is a Secret for echo.example.com whose certificate has a name to know it by.
func certificate(t *testing.T, namespace, name string) *corev1.Secret {
	t.Helper()
	must(t, the.ca.issue(name, name, "", "echo.example.com"))
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "certificate"},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{},
	}
	for key, file := range map[string]string{
		corev1.TLSCertKey: name + ".crt", corev1.TLSPrivateKeyKey: name + ".key",
	} {
		text, err := os.ReadFile(filepath.Join(state, file))
		must(t, err)
		secret.Data[key] = text
	}
	return secret
}

// presented waits until a server presents the certificate of a name, and returns a session with it.
func presented(t *testing.T, address, name string) *session {
	t.Helper()
	authorities := x509.NewCertPool()
	authorities.AddCert(the.ca.certificate)
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: patience},
		Config:    &tls.Config{ServerName: "echo.example.com", RootCAs: authorities},
	}
	var s *session
	eventually(t, "certificate "+name, func() error {
		conn, err := dialer.DialContext(context.Background(), "tcp", address)
		if err != nil {
			return err
		}
		subject := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
		if subject != name {
			return errors.Join(conn.Close(), fmt.Errorf("the certificate is %s", subject))
		}
		s, err = greet(conn)
		return err
	})
	return s
}
