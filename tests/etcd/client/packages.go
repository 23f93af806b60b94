package main

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"go.etcd.io/etcd/client/v3/ordering"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

var packageTests = []test{
	{"leasing", leasingCache},
	{"mirror", mirrorSync},
	{"namespace", namespaces},
	{"ordering", orderedReads},
	{"naming", namingEndpoints},
	{"kubernetes", kubernetesCalls},
}

func leasingCache(t *T) {
	cache := func() clientv3.KV {
		kv, end, err := leasing.NewKV(t.client(), t.prefix+"leases/")
		check(err, "a leasing client")
		t.ends = append([]func(){end}, t.ends...)
		return kv
	}
	one, two := cache(), cache()
	key := t.prefix + "k"
	must(one.Put(t.ctx, key, "1"))
	equal("read", pairs(must(one.Get(t.ctx, key))), key+"=1")
	equal("cached", pairs(must(one.Get(t.ctx, key))), key+"=1")
	must(two.Put(t.ctx, key, "2"))
	equal("after another's write", pairs(must(one.Get(t.ctx, key))), key+"=2")
	txn := must(one.Txn(t.ctx).If(clientv3.Compare(clientv3.Value(key), "=", "2")).
		Then(clientv3.OpPut(key, "3"), clientv3.OpGet(key)).Commit())
	equal("a transaction", txn.Succeeded, true)
	equal("seen by the other", pairs(must(two.Get(t.ctx, key))), key+"=3")
	must(two.Delete(t.ctx, t.prefix, clientv3.WithRange(t.prefix+"l")))
	equal("deleted", must(one.Get(t.ctx, key)).Count, int64(0))
	equal("done", must(one.Do(t.ctx, clientv3.OpPut(key, "4"))).Put() != nil, true)
	equal("put anew", pairs(must(two.Get(t.ctx, key))), key+"=4")
}

func mirrorSync(t *T) {
	client := t.client()
	// More than one of the syncer's batches.
	for n := range 1200 {
		must(client.Put(t.ctx, fmt.Sprintf("%s%04d", t.prefix, n), fmt.Sprint(n)))
	}
	syncer := mirror.NewSyncer(client, t.prefix, 0)
	base, failed := syncer.SyncBase(t.ctx)
	seen := 0
	for answer := range base {
		seen += len(answer.Kvs)
	}
	for err := range failed {
		check(err, "the base")
	}
	equal("keys of the base", seen, 1200)
	must(client.Put(t.ctx, t.prefix+"later", ""))
	update := events(t, syncer.SyncUpdates(t.ctx), 1)[0]
	equal("the update", string(update.Kv.Key), t.prefix+"later")
}

func namespaces(t *T) {
	client := t.client()
	kv := namespace.NewKV(client, t.prefix)
	watcher := namespace.NewWatcher(client, t.prefix)
	leases := namespace.NewLease(client, t.prefix)
	watch := watcher.Watch(t.ctx, "k", clientv3.WithCreatedNotify())
	receive(t, "created", watch)
	granted := must(leases.Grant(t.ctx, 600))
	must(kv.Put(t.ctx, "k", "v", clientv3.WithLease(granted.ID)))
	equal("inside", pairs(must(kv.Get(t.ctx, "", clientv3.WithFromKey()))), "k=v")
	equal("outside", pairs(must(client.Get(t.ctx, t.prefix+"k"))), t.prefix+"k=v")
	equal("the event", string(events(t, watch, 1)[0].Kv.Key), "k")
	left := must(leases.TimeToLive(t.ctx, granted.ID, clientv3.WithAttachedKeys()))
	equal("the lease's key", string(left.Keys[0]), "k")
	txn := must(kv.Txn(t.ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "v")).
		Then(clientv3.OpDelete("k", clientv3.WithPrevKV())).Commit())
	equal("deleted", string(txn.Responses[0].GetResponseDeleteRange().PrevKvs[0].Key), "k")
	check(watcher.Close(), "closing the watcher")
}

// A serializable read through any member is never older than one before it: the package asks another member otherwise.
func orderedReads(t *T) {
	client, writer := t.client(), t.client()
	kv := ordering.NewKV(client, ordering.NewOrderViolationSwitchEndpointClosure(client))
	last := int64(0)
	for n := range 100 {
		put := must(writer.Put(t.ctx, t.prefix+"k", fmt.Sprint(n)))
		if n%10 == 0 {
			fresh := must(kv.Get(t.ctx, t.prefix+"k"))
			holds("a linearizable read has it", fresh.Header.Revision >= put.Header.Revision)
			last = fresh.Header.Revision
		}
		client.SetEndpoints(t.endpoints[n%len(t.endpoints)])
		old := must(kv.Get(t.ctx, t.prefix+"k", clientv3.WithSerializable()))
		holds("no older than before", old.Header.Revision >= last)
		client.SetEndpoints(t.endpoints...)
	}
	txn := must(kv.Txn(t.ctx).Then(clientv3.OpGet(t.prefix + "k")).Commit())
	holds("a transaction, too", txn.Header.Revision >= last)
}

// The members themselves are the service that is found by its name.
func namingEndpoints(t *T) {
	client := t.client()
	service := t.prefix + "svc/foo"
	manager := must(endpoints.NewManager(client, service))
	updates := must(manager.NewWatchChannel(t.ctx))
	for _, address := range t.endpoints {
		endpoint := endpoints.Endpoint{Addr: address, Metadata: "member"}
		check(manager.AddEndpoint(t.ctx, service+"/"+address, endpoint), "adding an endpoint")
	}
	// The list is read from one member's own state, which may be behind.
	t.until("all are listed", func() bool { return len(must(manager.List(t.ctx))) == len(t.endpoints) })
	seen := 0
	for seen < len(t.endpoints) {
		seen += len(receive(t, "an update", updates))
	}
	builder := must(resolver.NewBuilder(client))
	connection := must(grpc.NewClient("etcd:///"+service, grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`)))
	defer func() { _ = connection.Close() }()
	must(client.Put(t.ctx, t.prefix+"k", "v"))
	for range 2 * len(t.endpoints) {
		answer := must(pb.NewKVClient(connection).Range(t.ctx, &pb.RangeRequest{Key: []byte(t.prefix + "k")}))
		equal("a value from a member", string(answer.Kvs[0].Value), "v")
	}
	check(manager.DeleteEndpoint(t.ctx, service+"/"+t.endpoints[0]), "deleting an endpoint")
	update := receive(t, "a deletion", updates)[0]
	equal("what was deleted", update.Op, endpoints.Delete)
}

func kubernetesCalls(t *T) {
	config := clientv3.Config{Endpoints: t.endpoints, Context: t.ctx}
	client := must(kubernetes.New(config))
	t.ends = append(t.ends, func() { _ = client.Close() })
	calls, key := client.Kubernetes, t.prefix+"pods/a"
	created := must(calls.OptimisticPut(t.ctx, key, []byte("1"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	equal("created", created.Succeeded, true)
	conflict := must(calls.OptimisticPut(t.ctx, key, []byte("x"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	equal("a conflict", conflict.Succeeded, false)
	equal("what is there", string(conflict.KV.Value), "1")
	updated := must(calls.OptimisticPut(t.ctx, key, []byte("2"), created.Revision, kubernetes.PutOptions{}))
	equal("updated", updated.Succeeded, true)
	for n := range 5 {
		must(calls.OptimisticPut(t.ctx, fmt.Sprint(t.prefix, "pods/b", n), nil, 0, kubernetes.PutOptions{}))
	}
	equal("count", must(calls.Count(t.ctx, t.prefix+"pods/", kubernetes.CountOptions{})), int64(6))
	var keys []string
	options := kubernetes.ListOptions{Limit: 4}
	for {
		page := must(calls.List(t.ctx, t.prefix+"pods/", options))
		for _, kv := range page.Kvs {
			keys = append(keys, string(kv.Key))
		}
		if int64(len(page.Kvs)) == page.Count {
			break
		}
		options.Continue, options.Revision = keys[len(keys)-1]+"\x00", page.Revision
	}
	equal("pages", len(keys), 6)
	old := must(calls.Get(t.ctx, key, kubernetes.GetOptions{Revision: created.Revision}))
	equal("the old value", string(old.KV.Value), "1")
	stale := must(calls.OptimisticDelete(t.ctx, key, created.Revision, kubernetes.DeleteOptions{GetOnFailure: true}))
	equal("a stale deletion", stale.Succeeded, false)
	gone := must(calls.OptimisticDelete(t.ctx, key, updated.Revision, kubernetes.DeleteOptions{}))
	equal("deleted", gone.Succeeded, true)
	// As the apiserver asks where a watch's cache stands.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(t.ctx))
	defer cancel()
	watch := client.Watch(ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithRev(created.Revision+1),
		clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	equal("events", len(events(t, watch, 7)), 7)
	t.until("progress", func() bool {
		check(client.RequestProgress(ctx), "asking for progress")
		return receive(t, "progress", watch).Header.Revision >= gone.Revision
	})
}
