package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// These turn authentication on, and off again when they end.
var authTests = []test{
	{"auth-roles", authRoles},
	{"auth-login-again", authLoginAgain},
	{"auth-streams", authStreams},
}

// The password of every user.
const secret = "a secret"

// As is the change that logs a client in.
func as(name string) func(*clientv3.Config) {
	return func(config *clientv3.Config) { config.Username, config.Password = name, secret }
}

// WithUsers turns authentication on, with root, whose client it gives, and u, who may read and write the keys of the test.
func withUsers(t *T) *clientv3.Client {
	client := t.client()
	t.ends = append([]func(){t.withoutUsers}, t.ends...)
	for _, name := range []string{"root", "u"} {
		must(client.UserAdd(t.ctx, name, secret))
	}
	must(client.RoleAdd(t.ctx, "r"))
	kind, end := clientv3.PermissionType(clientv3.PermReadWrite), clientv3.GetPrefixRangeEnd(t.prefix)
	must(client.RoleGrantPermission(t.ctx, "r", t.prefix, end, kind))
	must(client.UserGrantRole(t.ctx, "u", "r"))
	must(client.UserGrantRole(t.ctx, "root", "root"))
	must(client.AuthEnable(t.ctx))
	return t.client(as("root"))
}

// WithoutUsers turns authentication off, however the test has ended: those after it need that.
func (t *T) withoutUsers() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	root := t.client(as("root"))
	defer func() { _ = root.Close() }()
	must(root.AuthDisable(ctx))
	// What a test that failed has not made cannot be removed.
	_, _ = root.RoleDelete(ctx, "r")
	_, _ = root.UserDelete(ctx, "u")
	_, _ = root.UserDelete(ctx, "root")
}

func authRoles(t *T) {
	root := withUsers(t)
	u, key := t.client(as("u")), t.prefix+"k"
	must(u.Put(t.ctx, key, "1"))
	equal("a read", pairs(must(u.Get(t.ctx, t.prefix, clientv3.WithPrefix()))), key+"=1")
	_, err := u.Put(t.ctx, "elsewhere", "1")
	refused("another key", err, rpctypes.ErrPermissionDenied)
	_, err = u.Get(t.ctx, key, clientv3.WithFromKey())
	refused("a range that reaches further", err, rpctypes.ErrPermissionDenied)
	_, err = u.Txn(t.ctx).Then(clientv3.OpPut(key, "2")).Else(clientv3.OpGet("elsewhere")).Commit()
	refused("a branch that is not taken", err, rpctypes.ErrPermissionDenied)
	_, err = u.UserList(t.ctx)
	refused("work of root's", err, rpctypes.ErrPermissionDenied)
	equal("its own roles", must(u.UserGet(t.ctx, "u")).Roles, []string{"r"})
	_, err = t.client().Get(t.ctx, key)
	refused("nobody", err, rpctypes.ErrUserEmpty)
	_, err = clientv3.New(clientv3.Config{Endpoints: t.endpoints, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop(), TLS: t.tls, Username: "u", Password: "wrong"})
	refused("a wrong password", err, rpctypes.ErrAuthFailed)

	must(root.UserRevokeRole(t.ctx, "u", "r"))
	_, err = u.Get(t.ctx, key)
	refused("without its role", err, rpctypes.ErrPermissionDenied)
	_, err = u.Put(t.ctx, key, "2")
	refused("without its role", err, rpctypes.ErrPermissionDenied)
	must(root.UserGrantRole(t.ctx, "u", "r"))
	equal("the value is the old one", pairs(must(u.Get(t.ctx, key))), key+"=1")
}

// A token ends with the password, and the client logs in again by itself: after `invalid auth token`, or, with signed tokens,
// after `revision of auth store is old`.
func authLoginAgain(t *T) {
	root := withUsers(t)
	u, key := t.client(as("u")), t.prefix+"k"
	must(u.Put(t.ctx, key, ""))
	for n := range 3 {
		must(root.UserChangePassword(t.ctx, "u", secret))
		if n == 1 {
			// Reads notice it too.
			equal("a read", must(u.Get(t.ctx, key)).Count, int64(1))
		}
		must(u.Put(t.ctx, key, fmt.Sprint(n)))
		equal("what was put", pairs(must(root.Get(t.ctx, key))), fmt.Sprint(key, "=", n))
	}
	must(root.UserChangePassword(t.ctx, "u", "another"))
	_, err := u.Put(t.ctx, key, "")
	refused("another password", err, rpctypes.ErrAuthFailed)
}

// A watch and renewals of a lease go on, though the token with which they began has ended. The client has one member, as a token
// may be refused for a moment by another one, and a stream is not opened again for that.
func authStreams(t *T) {
	root := withUsers(t)
	u := t.client(as("u"), to(t.endpoints[0]))
	watch := u.Watch(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	holds("the watch is made", receive(t, "created", watch).Created)
	granted := must(u.Grant(t.ctx, 6))
	must(u.Put(t.ctx, t.prefix+"before", "", clientv3.WithLease(granted.ID)))
	alive := must(u.KeepAlive(t.ctx, granted.ID))
	receive(t, "a renewal", alive)
	must(root.UserChangePassword(t.ctx, "u", secret))
	after := must(root.Put(t.ctx, t.prefix+"after", "")).Header.Revision
	var seen []string
	for _, event := range events(t, watch, 2) {
		seen = append(seen, string(event.Kv.Key))
	}
	equal("events", seen, []string{t.prefix + "before", t.prefix + "after"})
	for receive(t, "a renewal after it", alive).Revision < after {
	}
	// On a stream of its own: that of the first watch has the token that has ended.
	again := u.Watch(clientv3.WithRequireLeader(t.ctx), t.prefix+"last", clientv3.WithCreatedNotify())
	holds("another watch is made", receive(t, "created", again).Created)
	must(u.Put(t.ctx, t.prefix+"last", ""))
	equal("its event", string(events(t, again, 1)[0].Kv.Key), t.prefix+"last")
	holds("the lease lives", must(u.TimeToLive(t.ctx, granted.ID)).TTL > 0)
}
