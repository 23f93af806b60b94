package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var watchTests = []test{
	{"watch", watch},
	{"watch-history", watchHistory},
	{"watch-fragments", watchFragments},
	{"watch-progress", watchProgress},
	{"many-watches", manyWatches},
	{"cancelled-calls", cancelledCalls},
}

// Takes events until there are as many.
func events(t *T, from clientv3.WatchChan, count int) []*clientv3.Event {
	var all []*clientv3.Event
	for len(all) < count {
		answer := receive(t, fmt.Sprintf("event %d of %d", len(all), count), from)
		check(answer.Err(), "the watch")
		all = append(all, answer.Events...)
	}
	equal("events", len(all), count)
	return all
}

func watch(t *T) {
	client, key := t.client(), t.prefix+"k"
	ctx, cancel := context.WithCancel(t.ctx)
	leader := clientv3.WithRequireLeader(ctx)
	one := client.Watch(leader, key, clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
	holds("the first message says that it is made", receive(t, "created", one).Created)
	puts := client.Watch(leader, t.prefix, clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithCreatedNotify())
	receive(t, "created", puts)
	deletes := client.Watch(leader, t.prefix, clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
	receive(t, "created", deletes)

	must(client.Put(t.ctx, key, "1"))
	must(client.Put(t.ctx, key, "2"))
	must(client.Delete(t.ctx, key))
	seen := events(t, one, 3)
	holds("the first creates", seen[0].IsCreate() && seen[0].PrevKv == nil)
	holds("the second modifies", seen[1].IsModify() && string(seen[1].PrevKv.Value) == "1")
	holds("the third deletes", seen[2].Type == clientv3.EventTypeDelete && string(seen[2].PrevKv.Value) == "2")
	equal("puts alone", len(events(t, puts, 2)), 2)
	equal("deletions alone", len(events(t, deletes, 1)), 1)
	cancel()
	closed(t, "a cancelled watch", one)
}

func watchHistory(t *T) {
	client := t.client()
	first := must(client.Put(t.ctx, t.prefix+"0", "")).Header.Revision
	for n := 1; n < 2500; n++ {
		// Several puts in one transaction share a revision.
		var puts []clientv3.Op
		for part := range n%3 + 1 {
			puts = append(puts, clientv3.OpPut(fmt.Sprint(t.prefix, n, "/", part), fmt.Sprint(n)))
		}
		if n%3 == 0 || n > 100 {
			puts = puts[:1]
		}
		must(client.Txn(t.ctx).Then(puts...).Commit())
	}
	history := client.Watch(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithRev(first))
	count := int(must(client.Get(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())).Count)
	before := int64(0)
	for _, event := range events(t, history, count) {
		holds("history is in order", event.Kv.ModRevision >= before)
		before = event.Kv.ModRevision
	}
	must(client.Put(t.ctx, t.prefix+"live", ""))
	equal("and goes on", string(events(t, history, 1)[0].Kv.Key), t.prefix+"live")
}

// As etcd's TestWatchFragment: one response of ten events of 1 MiB, put together from its fragments by the client.
func watchFragments(t *T) {
	client := t.client(to(t.endpoints[0]))
	var first int64
	for n := range 10 {
		put := must(client.Put(t.ctx, fmt.Sprint(t.prefix, n), strings.Repeat("a", 1<<20)))
		if n == 0 {
			first = put.Header.Revision
		}
	}
	// The member has applied them all, so that the watch finds them as history.
	must(client.Get(t.ctx, t.prefix+"0"))
	small := t.client(to(t.endpoints[0]), func(config *clientv3.Config) { config.MaxCallRecvMsgSize = 3 << 19 })
	for name, client := range map[string]*clientv3.Client{"any size": client, "small messages": small} {
		watch := client.Watch(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithFragment())
		answer := receive(t, name, watch)
		check(answer.Err(), name)
		equal("events of one response, "+name, len(answer.Events), 10)
	}
	whole := client.Watch(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithRev(first))
	equal("events without fragments", len(events(t, whole, 10)), 10)
	must(client.Delete(t.ctx, t.prefix, clientv3.WithPrefix()))
}

func watchProgress(t *T) {
	client := t.client()
	watch := client.Watch(t.ctx, t.prefix+"k", clientv3.WithCreatedNotify())
	receive(t, "created", watch)
	revision := must(client.Put(t.ctx, t.prefix+"other", "")).Header.Revision
	t.until("progress", func() bool {
		check(client.RequestProgress(t.ctx), "asking for progress")
		answer := receive(t, "progress", watch)
		holds("it says nothing else", answer.IsProgressNotify())
		return answer.Header.Revision >= revision
	})
	must(client.Put(t.ctx, t.prefix+"k", ""))
	t.until("the event", func() bool {
		answer := receive(t, "an event", watch)
		return len(answer.Events) == 1
	})
}

// Watches share the stream of their context's metadata, so these are all on one.
func manyWatches(t *T) {
	client := t.client(to(t.endpoints[0]))
	made := make([]clientv3.WatchChan, t.watches)
	for n := range made {
		made[n] = client.Watch(t.ctx, fmt.Sprintf("%s%05d", t.prefix, n), clientv3.WithCreatedNotify())
	}
	for n, watch := range made {
		holds(fmt.Sprint("watch ", n, " is made"), receive(t, fmt.Sprint("watch ", n), watch).Created)
	}
	for n := 0; n < len(made); n += 100 {
		must(client.Put(t.ctx, fmt.Sprintf("%s%05d", t.prefix, n), "v"))
	}
	for n := 0; n < len(made); n += 100 {
		equal("events", len(events(t, made[n], 1)), 1)
	}
}

// A burst of calls that are cancelled at once leaves the connection, its watch and its lease alone.
func cancelledCalls(t *T) {
	client := t.client(to(t.endpoints[0]))
	watch := client.Watch(t.ctx, t.prefix+"k", clientv3.WithCreatedNotify())
	receive(t, "created", watch)
	lease := must(client.Grant(t.ctx, 600))
	alive := must(client.KeepAlive(t.ctx, lease.ID))
	receive(t, "a renewal", alive)
	for range 10 {
		for n := range 50 {
			ctx, cancel := context.WithCancel(t.ctx)
			if n%2 == 0 {
				ctx, cancel = context.WithTimeout(t.ctx, time.Microsecond*time.Duration(n*20))
			}
			go func() { _, _ = client.Get(ctx, t.prefix+"k") }()
			go cancel()
		}
		must(client.Put(t.ctx, t.prefix+"k", "v"))
		equal("the watch lives", len(events(t, watch, 1)), 1)
	}
	must(client.KeepAliveOnce(t.ctx, lease.ID))
	select {
	case _, open := <-alive:
		holds("the lease's channel lives", open)
	default:
	}
	// A watch that is cancelled leaves others alone, too.
	for range 50 {
		ctx, cancel := context.WithCancel(t.ctx)
		client.Watch(ctx, t.prefix+"k")
		cancel()
	}
	must(client.Put(t.ctx, t.prefix+"k", "last"))
	equal("the watch still lives", len(events(t, watch, 1)), 1)
	_, err := client.Get(t.ctx, t.prefix+"k", clientv3.WithRev(1<<40))
	refused("and so do errors", err, rpctypes.ErrFutureRev)
}
