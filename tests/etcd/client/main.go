// The Go client of etcd, with all its packages, against a cluster: each test is a function that fails with a message.
//
// The program prints one line a test, `ok NAME` or `FAILED NAME: WHY`, and ends with 1 if one failed. A test that needs a member
// killed or started writes `kill N` or `start N` and waits for a line on standard input: members are processes of its caller.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Patience bounds each test: generous, for a loaded machine and a debug build.
const patience = 2 * time.Minute

// A T is what one test gets: where the members are, and a place among the keys of its own.
type T struct {
	ctx       context.Context
	endpoints []string
	// All keys of the test begin with it.
	prefix string
	// How many leases one client keeps alive, and how many watches one stream has.
	leases, watches int
	// For members that speak TLS; nil for others.
	tls *tls.Config
	// What to close when the test ends.
	ends []func()
}

// A failure is what a test panics with.
type failure string

type test struct {
	name string
	run  func(*T)
}

// All tests, in the order in which they run; those that disturb the cluster come last.
func all() []test {
	var tests []test
	for _, some := range [][]test{
		kvTests, watchTests, leaseTests, concurrencyTests, packageTests, recipeTests, clusterTests, authTests, failoverTests,
	} {
		tests = append(tests, some...)
	}
	return tests
}

func fail(format string, args ...any) {
	panic(failure(fmt.Sprintf(format, args...)))
}

func check(err error, doing ...any) {
	if err != nil {
		fail("%s: %v", strings.TrimSpace(fmt.Sprintln(doing...)), err)
	}
}

// Must gives the value of a call that succeeds.
func must[V any](value V, err error) V {
	check(err, fmt.Sprintf("for %T", value))
	return value
}

func equal(what string, got, want any) {
	if !reflect.DeepEqual(got, want) {
		fail("%s: got %#v, want %#v", what, got, want)
	}
}

func holds(what string, is bool) {
	if !is {
		fail("not so: %s", what)
	}
}

// Refused checks that a call fails as the client's table of errors has it.
func refused(what string, err, want error) {
	if err == nil || err.Error() != want.Error() {
		fail("%s: got error %v, want %v", what, err, want)
	}
}

// Until asks again and again until it is so.
func (t *T) until(what string, is func() bool) {
	for !is() {
		select {
		case <-t.ctx.Done():
			fail("never: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Receive takes one value from a channel that is not closed.
func receive[V any](t *T, what string, from <-chan V) V {
	select {
	case value, open := <-from:
		if !open {
			fail("%s: the channel is closed", what)
		}
		return value
	case <-t.ctx.Done():
		fail("%s: nothing came", what)
	}
	panic("unreachable")
}

// Closed waits until a channel is closed.
func closed[V any](t *T, what string, channel <-chan V) {
	for {
		select {
		case _, open := <-channel:
			if !open {
				return
			}
		case <-t.ctx.Done():
			fail("%s: the channel stays open", what)
		}
	}
}

// Client connects to all members; changes are made to its configuration first.
func (t *T) client(changes ...func(*clientv3.Config)) *clientv3.Client {
	config := clientv3.Config{
		Endpoints:   t.endpoints,
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(),
		TLS:         t.tls,
	}
	for _, change := range changes {
		change(&config)
	}
	client := must(clientv3.New(config))
	t.ends = append(t.ends, func() { _ = client.Close() })
	return client
}

// To is the change that connects a client to one member.
func to(endpoint string) func(*clientv3.Config) {
	return func(config *clientv3.Config) { config.Endpoints = []string{endpoint} }
}

var input = bufio.NewReader(os.Stdin)

// Tell asks the caller for something and waits until it is done.
func tell(what string, member int) {
	fmt.Printf("%s %d\n", what, member)
	_ = must(input.ReadString('\n'))
}

func run(one test, base T) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t := base
	t.ctx, t.prefix = ctx, one.name+"/"
	defer func() {
		found := recover()
		cancel()
		for _, end := range t.ends {
			end()
		}
		switch found := found.(type) {
		case nil:
		case failure:
			err = fmt.Errorf("%s", string(found))
		default:
			panic(found)
		}
	}()
	one.run(&t)
	return nil
}

// Credentials reads what this client trusts and shows; nil without an authority.
func credentials(ca, cert, key string) *tls.Config {
	if ca == "" {
		return nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(must(os.ReadFile(ca))) {
		fail("no certificate in %s", ca)
	}
	own := must(tls.LoadX509KeyPair(cert, key))
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12}
}

func main() {
	endpoints := flag.String("endpoints", "", "where the members are, with commas between")
	only := flag.String("run", "", "run only tests whose name matches")
	leases := flag.Int("leases", 20_000, "leases that one client keeps alive")
	watches := flag.Int("watches", 9_000, "watches on one stream")
	ca := flag.String("cacert", "", "the authority of the members' certificates, if they speak TLS")
	cert := flag.String("cert", "", "the certificate that is shown to members")
	key := flag.String("key", "", "its key")
	flag.Parse()
	base := T{endpoints: strings.Split(*endpoints, ","), leases: *leases, watches: *watches}
	base.tls = credentials(*ca, *cert, *key)
	wanted := regexp.MustCompile(*only)
	failed := 0
	for _, one := range all() {
		if !wanted.MatchString(one.name) {
			continue
		}
		if err := run(one, base); err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", one.name, err)
		} else {
			fmt.Printf("ok %s\n", one.name)
		}
	}
	if failed != 0 {
		os.Exit(1)
	}
}
