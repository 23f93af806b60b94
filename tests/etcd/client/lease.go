package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var leaseTests = []test{
	{"lease", lease},
	{"lease-expires", leaseExpires},
	{"many-leases", manyLeases},
}

func lease(t *T) {
	client := t.client()
	granted := must(client.Grant(t.ctx, 600))
	must(client.Put(t.ctx, t.prefix+"a", "", clientv3.WithLease(granted.ID)))
	must(client.Put(t.ctx, t.prefix+"b", "", clientv3.WithLease(granted.ID)))
	left := must(client.TimeToLive(t.ctx, granted.ID, clientv3.WithAttachedKeys()))
	equal("the granted time", left.GrantedTTL, int64(600))
	holds("the time left", left.TTL > 500 && left.TTL <= 600)
	equal("its keys", len(left.Keys), 2)
	equal("a renewal", must(client.KeepAliveOnce(t.ctx, granted.ID)).TTL, int64(600))
	listed := false
	for _, one := range must(client.Leases(t.ctx)).Leases {
		listed = listed || one.ID == granted.ID
	}
	holds("it is in the list", listed)
	must(client.Revoke(t.ctx, granted.ID))
	equal("keys after it", must(client.Get(t.ctx, t.prefix, clientv3.WithPrefix())).Count, int64(0))
	equal("the time left of none", must(client.TimeToLive(t.ctx, granted.ID)).TTL, int64(-1))
	_, err := client.KeepAliveOnce(t.ctx, granted.ID)
	refused("a renewal of none", err, rpctypes.ErrLeaseNotFound)
}

func leaseExpires(t *T) {
	client := t.client()
	short := must(client.Grant(t.ctx, 1))
	kept := must(client.Grant(t.ctx, 5))
	ctx, cancel := context.WithCancel(t.ctx)
	alive := must(client.KeepAlive(ctx, kept.ID))
	put := must(client.Put(t.ctx, t.prefix+"short", "", clientv3.WithLease(short.ID)))
	must(client.Put(t.ctx, t.prefix+"kept", "", clientv3.WithLease(kept.ID)))
	watch := client.Watch(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithFilterPut(),
		clientv3.WithRev(put.Header.Revision))
	equal("the one that expires", string(events(t, watch, 1)[0].Kv.Key), t.prefix+"short")
	for range 3 {
		equal("the time after a renewal", receive(t, "a renewal", alive).TTL, int64(5))
	}
	equal("the one that is kept", must(client.Get(t.ctx, t.prefix+"kept")).Count, int64(1))
	cancel()
	equal("the one that was kept", string(events(t, watch, 1)[0].Kv.Key), t.prefix+"kept")
}

// One client keeps them all alive, on one stream.
func manyLeases(t *T) {
	client := t.client(to(t.endpoints[0]))
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	ids := make([]clientv3.LeaseID, t.leases)
	channels := make([]<-chan *clientv3.LeaseKeepAliveResponse, len(ids))
	// So long that one round of renewals fits in, and so short that several come while the test runs.
	const seconds = 30
	var group sync.WaitGroup
	failed := make(chan error, 16)
	for part := range 16 {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := part; n < len(ids); n += 16 {
				granted, err := client.Grant(t.ctx, seconds)
				if err != nil {
					failed <- err
					return
				}
				ids[n] = granted.ID
				if channels[n], err = client.KeepAlive(ctx, granted.ID); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	group.Wait()
	close(failed)
	for err := range failed {
		check(err, "a grant")
	}
	lost := 0
	for n, channel := range channels {
		for round := range 2 {
			select {
			case answer, open := <-channel:
				if !open || answer.TTL != seconds {
					lost++
				}
			case <-time.After(patience):
				fail("lease %d: no renewal %d", n, round)
			}
			if lost != 0 {
				break
			}
		}
	}
	equal(fmt.Sprint("channels lost of ", len(ids)), lost, 0)
	cancel()
	for part := range 16 {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := part; n < len(ids); n += 16 {
				_, _ = client.Revoke(t.ctx, ids[n])
			}
		}()
	}
	group.Wait()
}
