package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var clusterTests = []test{
	{"sync", syncEndpoints},
	{"maintenance", maintenance},
	{"auth-off", authOff},
	{"learner", learner},
}

// These kill members.
var failoverTests = []test{
	{"failover", failover},
}

func syncEndpoints(t *T) {
	client := t.client(to(t.endpoints[0]))
	check(client.Sync(t.ctx), "synchronizing")
	var got []string
	for _, endpoint := range client.Endpoints() {
		got = append(got, strings.TrimPrefix(endpoint, "http://"))
	}
	sort.Strings(got)
	want := append([]string(nil), t.endpoints...)
	sort.Strings(want)
	equal("endpoints of all members", got, want)
	must(client.Put(t.ctx, t.prefix+"k", "v"))
	members := must(client.MemberList(t.ctx)).Members
	equal("members", len(members), len(t.endpoints))
	must(client.MemberList(t.ctx, clientv3.WithSerializable()))
}

// Status of each member; gives the leader's endpoint and the ids in the order of the endpoints.
func statuses(t *T, client *clientv3.Client) (leader string, ids []uint64) {
	for _, endpoint := range t.endpoints {
		status := must(client.Status(t.ctx, endpoint))
		ids = append(ids, status.Header.MemberId)
		if status.Leader == status.Header.MemberId {
			leader = endpoint
		}
	}
	return leader, ids
}

func maintenance(t *T) {
	client := t.client()
	must(client.Put(t.ctx, t.prefix+"k", "v"))
	status := must(client.Status(t.ctx, t.endpoints[0]))
	equal("version", status.Version, "3.7.3")
	holds("sizes", status.DbSize > 0 && status.DbSizeInUse > 0 && status.DbSizeQuota > 0)
	holds("progress", status.RaftIndex >= status.RaftAppliedIndex && status.RaftTerm > 0)
	equal("errors", len(status.Errors), 0)
	equal("alarms", len(must(client.AlarmList(t.ctx)).Alarms), 0)
	must(client.AlarmDisarm(t.ctx, &clientv3.AlarmMember{}))

	// Members that have applied the same have the same hash.
	revision := must(client.Get(t.ctx, t.prefix+"k")).Header.Revision
	var hash uint32
	for n, endpoint := range t.endpoints {
		own := t.client(to(endpoint))
		must(own.Get(t.ctx, t.prefix+"k"))
		answer := must(client.HashKV(t.ctx, endpoint, revision))
		equal("the revision of a hash", answer.HashRevision, revision)
		if n == 0 {
			hash = answer.Hash
		}
		equal("the hash of "+endpoint, answer.Hash, hash)
	}

	leader, ids := statuses(t, client)
	for n, endpoint := range t.endpoints {
		if endpoint == leader {
			continue
		}
		_, err := t.client(to(endpoint)).MoveLeader(t.ctx, ids[n])
		refused("asking a follower", err, rpctypes.ErrNotLeader)
		must(t.client(to(leader)).MoveLeader(t.ctx, ids[n]))
		t.until("the new leader leads", func() bool {
			leads, _ := statuses(t, client)
			return leads == endpoint
		})
		return
	}
}

func authOff(t *T) {
	client := t.client()
	status := must(client.AuthStatus(t.ctx))
	equal("enabled", status.Enabled, false)
	equal("users", len(must(client.UserList(t.ctx)).Users), 0)
	equal("roles", len(must(client.RoleList(t.ctx)).Roles), 0)
	_, err := client.Authenticate(t.ctx, "root", "secret")
	refused("a password", err, rpctypes.ErrAuthNotEnabled)
	// A client that is given a user works all the same.
	named := t.client(func(config *clientv3.Config) {
		config.Username, config.Password = "root", "secret"
	})
	must(named.Put(t.ctx, t.prefix+"k", "v"))
}

// A learner that never starts is added and removed.
func learner(t *T) {
	client := t.client()
	var added *clientv3.MemberAddResponse
	t.until("the cluster takes a learner", func() bool {
		var err error
		added, err = client.MemberAddAsLearner(t.ctx, []string{"http://127.0.0.1:1"})
		if err != nil {
			// As long as its members have been connected for less than five seconds.
			refused("adding", err, rpctypes.ErrUnhealthy)
		}
		return err == nil
	})
	equal("members", len(added.Members), len(t.endpoints)+1)
	holds("it learns", added.Member.IsLearner)
	_, err := client.MemberPromote(t.ctx, added.Member.ID)
	refused("promoting it", err, rpctypes.ErrMemberLearnerNotReady)
	// Not the learner's own: added twice within a second, it gets the same id, which etcd then refuses first.
	other := added.Members[0]
	if other.ID == added.Member.ID {
		other = added.Members[1]
	}
	_, err = client.MemberAddAsLearner(t.ctx, other.PeerURLs)
	refused("another's address", err, rpctypes.ErrPeerURLExist)
	_, err = client.MemberAddAsLearner(t.ctx, []string{"http://127.0.0.1:2"})
	refused("a second one", err, rpctypes.ErrTooManyLearners)
	must(client.MemberUpdate(t.ctx, added.Member.ID, []string{"http://127.0.0.1:3"}))
	must(client.MemberRemove(t.ctx, added.Member.ID))
	equal("members after it", len(must(client.MemberList(t.ctx)).Members), len(t.endpoints))
}

// Each member in turn dies and comes back. One client knows them all: its puts, its watch and its lease go on.
func failover(t *T) {
	client := t.client(func(config *clientv3.Config) {
		config.DialKeepAliveTime, config.DialKeepAliveTimeout = 2*time.Second, 2*time.Second
	})
	granted := must(client.Grant(t.ctx, 60))
	alive := must(client.KeepAlive(t.ctx, granted.ID))
	go func() {
		for range alive {
		}
	}()
	start := must(client.Put(t.ctx, t.prefix+"start", "", clientv3.WithLease(granted.ID))).Header.Revision
	watch := client.Watch(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithRev(start+1))
	done := 0
	// A put that fails may have happened, so each has a key of its own, and is repeated until one succeeds.
	put := func() {
		key := fmt.Sprintf("%s%05d", t.prefix, done)
		t.until("a put", func() bool {
			ctx, cancel := context.WithTimeout(t.ctx, 10*time.Second)
			defer cancel()
			_, err := client.Put(ctx, key, "")
			return err == nil
		})
		done++
	}
	for member := range t.endpoints {
		for range 20 {
			put()
		}
		tell("kill", member)
		for range 20 {
			put()
			must(client.Get(t.ctx, t.prefix+"start"))
		}
		tell("start", member)
		own := t.client(to(t.endpoints[member]))
		t.until("it serves again", func() bool {
			ctx, cancel := context.WithTimeout(t.ctx, 5*time.Second)
			defer cancel()
			_, err := own.Get(ctx, t.prefix+"start")
			return err == nil
		})
	}
	// Every key once or more, in order, none left out.
	next := 0
	for next < done {
		answer := receive(t, fmt.Sprint("put ", next, " of ", done), watch)
		check(answer.Err(), "the watch")
		for _, event := range answer.Events {
			var n int
			_ = must(fmt.Sscanf(strings.TrimPrefix(string(event.Kv.Key), t.prefix), "%d", &n))
			holds(fmt.Sprintf("event %d follows %d", n, next-1), n == next || n == next-1)
			next = n + 1
		}
	}
	holds("the lease lives", must(client.TimeToLive(t.ctx, granted.ID)).TTL > 0)
}
