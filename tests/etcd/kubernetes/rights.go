package main

import (
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
)

var tests = []test{
	{"setup", setup},
	{"health", health},
	{"create-and-get", createAndGet},
	{"lists", lists},
	{"streamed-lists", streamedLists},
	{"updates", updates},
	{"deletions", deletions},
	{"objects-that-end", objectsThatEnd},
	{"sizes", sizes},
	{"watch", watchFromRevision},
	{"watch-with-initial-events", watchWithInitialEvents},
	{"watch-progress", watchProgress},
	{"cache", cache},
	{"many-watches-of-a-cache", manyWatchesOfACache},
	{"strangers", strangers},
	{"rights-taken", rightsTaken},
	{"member-restarts", memberRestarts},
	{"compaction", compaction},
}

// Setup makes the users, who have no passwords: their certificates name them.
func setup(t *T) {
	root := t.client("root")
	for _, name := range []string{"root", apiserver} {
		must(root.UserAddWithOptions(t.ctx, name, "", &clientv3.UserAddOptions{NoPassword: true}))
		must(root.RoleAdd(t.ctx, name))
		must(root.UserGrantRole(t.ctx, name, name))
	}
	for _, prefix := range []string{"/registry/", "compact_rev_key"} {
		end := clientv3.GetPrefixRangeEnd(prefix)
		must(root.RoleGrantPermission(t.ctx, apiserver, prefix, end, clientv3.PermissionType(clientv3.PermReadWrite)))
	}
	must(root.AuthEnable(t.ctx))
}

func health(t *T) {
	config := t.config(apiserver).Config
	stop := make(chan struct{})
	t.ends = append(t.ends, func() { close(stop) })
	healthy := must(factory.CreateHealthCheck(config, stop))
	t.until("healthy", func() bool { return healthy() == nil })
	ready := must(factory.CreateReadyCheck(config, stop))
	t.until("ready", func() bool { return ready() == nil })
	prober := must(factory.CreateProber(config))
	check("probe", prober.Probe(t.ctx))
	check("close", prober.Close())
	monitor := must(factory.CreateMonitor(config))
	size := must(monitor.Monitor(t.ctx)).Size
	holds("a size", size > 0)
	check("close", monitor.Close())
}

// Strangers have a certificate of the authority, whose name is no user's.
func strangers(t *T) {
	store := t.storage(t.config("stranger"))
	denied := saying(rpctypes.ErrPermissionDenied)
	refused("get", store.Get(t.ctx, t.key("k"), storage.GetOptions{}, newObject()), denied)
	refused("create", store.Create(t.ctx, t.key("k"), t.object("k", nil), nil, 0), denied)
	refused("list", store.GetList(t.ctx, t.all(), everything(), newList()), denied)
	_, err := store.GetCurrentResourceVersion(t.ctx)
	refused("current revision", err, denied)
	event := t.next(t.watch(store, "1"))
	equal("what a watch says", event.Type, watch.Error)
	stop := make(chan struct{})
	t.ends = append(t.ends, func() { close(stop) })
	healthy := must(factory.CreateHealthCheck(t.config("stranger").Config, stop))
	t.until("unhealthy, with the reason", func() bool {
		err := healthy()
		return err != nil && strings.Contains(err.Error(), rpctypes.ErrPermissionDenied.Error())
	})
}

// RightsTaken takes the role away and gives it back.
func rightsTaken(t *T) {
	store, root := t.store(), t.client("root")
	before := t.make(store, "before", nil)
	watching := t.watch(store, before.ResourceVersion)
	t.make(store, "seen", nil)
	t.event(watching, watch.Added, "seen")
	must(root.UserRevokeRole(t.ctx, apiserver, apiserver))
	denied := saying(rpctypes.ErrPermissionDenied)
	refused("get", store.Get(t.ctx, t.key("before"), storage.GetOptions{}, newObject()), denied)
	refused("create", store.Create(t.ctx, t.key("k"), t.object("k", nil), nil, 0), denied)
	refused("list", store.GetList(t.ctx, t.all(), everything(), newList()), denied)
	paged := everything()
	paged.Predicate.Limit = 1
	refused("a page", store.GetList(t.ctx, t.all(), paged, newList()), denied)
	refused("update", t.update(store, "before", nil, func(object *corev1.ConfigMap) {}), denied)
	refused("delete", t.delete(store, "before", nil), denied)
	equal("a new watch", t.next(t.watch(store, before.ResourceVersion)).Type, watch.Error)
	if t.watchesEnd {
		// etcd's client keeps the reason to itself: the channel is closed, and the API server lists and watches anew.
		_, open := <-watching.ResultChan()
		holds("the old watch ends", !open)
	}
	must(root.UserGrantRole(t.ctx, apiserver, apiserver))
	check("get", store.Get(t.ctx, t.key("before"), storage.GetOptions{}, newObject()))
	t.make(store, "after", nil)
	again := t.watch(store, before.ResourceVersion)
	t.event(again, watch.Added, "seen")
	t.event(again, watch.Added, "after")
}
