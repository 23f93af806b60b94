package quorate;

import static quorate.T.bytes;
import static quorate.T.equal;
import static quorate.T.holds;
import static quorate.T.must;
import static quorate.T.refused;
import static quorate.T.text;

import io.etcd.jetcd.Auth;
import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.auth.Permission;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.PutOption;
import io.grpc.Status.Code;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;

/** Users, passwords, roles and tokens. */
final class Rights {
    static final String PASSWORD = "secret";

    static final String DENIED = "etcdserver: permission denied";
    private static final String WRONG = "etcdserver: authentication failed, invalid user ID or password";

    static final List<Main.Test> TESTS = List.of(
        new Main.Test("setup", Rights::setup),
        new Main.Test("logins", Rights::logins),
        new Main.Test("wrong-passwords", Rights::wrongPasswords),
        new Main.Test("nobody", Rights::nobody),
        new Main.Test("allowed-and-denied", Rights::allowedAndDenied),
        new Main.Test("transactions-denied", Rights::transactionsDenied),
        new Main.Test("rights-change", Rights::rightsChange),
        new Main.Test("administration", Rights::administration),
        new Main.Test("password-ends-token", Rights::passwordEndsToken),
        new Main.Test("time-ends-token", Rights::timeEndsToken),
        new Main.Test("many-at-once", Rights::manyAtOnce));

    private Rights() {
    }

    /** The key that ends what begins with this. */
    static ByteSequence endOf(String prefix) {
        char last = (char) (prefix.charAt(prefix.length() - 1) + 1);
        return bytes(prefix.substring(0, prefix.length() - 1) + last);
    }

    private static void grant(Auth auth, String role, String prefix, Permission.Type type) throws InterruptedException {
        must(auth.roleGrantPermission(bytes(role), bytes(prefix), endOf(prefix), type));
    }

    /**
     * Makes the users while everybody may, and turns authentication on. {@code user}, {@code reader} and {@code alice} may read
     * all below the tests' names and the first and the last write it too; nobody but root may anything below {@code secret/}.
     */
    private static void setup(T t) throws Exception {
        Auth auth = t.plain(builder -> builder).getAuthClient();
        refused("without root", auth.authEnable(), Code.FAILED_PRECONDITION, "etcdserver: root user does not exist");
        for (String name : List.of("root", "user", "reader", "alice", "changing")) {
            must(auth.userAdd(bytes(name), bytes(PASSWORD)));
        }
        refused("a user twice", auth.userAdd(bytes("user"), bytes("x")),
            Code.FAILED_PRECONDITION, "etcdserver: user name already exists");
        refused("no name", auth.userAdd(bytes(""), bytes("x")), Code.INVALID_ARGUMENT, "etcdserver: user name is empty");
        for (String name : List.of("root", "writes", "reads", "changes")) {
            must(auth.roleAdd(bytes(name)));
        }
        refused("a role twice", auth.roleAdd(bytes("writes")),
            Code.FAILED_PRECONDITION, "etcdserver: role name already exists");
        refused("no such role", auth.userGrantRole(bytes("user"), bytes("none")),
            Code.FAILED_PRECONDITION, "etcdserver: role name not found");
        refused("no such user", auth.userGrantRole(bytes("none"), bytes("writes")),
            Code.FAILED_PRECONDITION, "etcdserver: user name not found");
        // All but what begins with "secret/".
        must(auth.roleGrantPermission(bytes("writes"), bytes("a"), bytes("secret/"), Permission.Type.READWRITE));
        must(auth.roleGrantPermission(bytes("writes"), bytes("secret0"), bytes("~"), Permission.Type.READWRITE));
        must(auth.roleGrantPermission(bytes("reads"), bytes("a"), bytes("secret/"), Permission.Type.READ));
        must(auth.roleGrantPermission(bytes("reads"), bytes("secret0"), bytes("~"), Permission.Type.READ));
        refused("a role that root has not got yet", auth.authEnable(),
            Code.FAILED_PRECONDITION, "etcdserver: root user does not have root role");
        must(auth.userGrantRole(bytes("root"), bytes("root")));
        must(auth.userGrantRole(bytes("user"), bytes("writes")));
        must(auth.userGrantRole(bytes("alice"), bytes("writes")));
        must(auth.userGrantRole(bytes("reader"), bytes("reads")));
        must(auth.userGrantRole(bytes("changing"), bytes("changes")));
        equal("users", must(auth.userList()).getUsers(), List.of("alice", "changing", "reader", "root", "user"));
        equal("a user's roles", must(auth.userGet(bytes("user"))).getRoles(), List.of("writes"));
        List<Permission> permissions = must(auth.roleGet(bytes("writes"))).getPermissions();
        equal("permissions", permissions.size(), 2);
        equal("a permission's kind", permissions.get(0).getPermType(), Permission.Type.READWRITE);
        equal("its key", text(permissions.get(0).getKey()), "a");
        equal("its end", text(permissions.get(0).getRangeEnd()), "secret/");
        Client other = t.as("root", PASSWORD);
        refused("a login while it is off", other.getKVClient().get(t.key("k")),
            Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled");
        must(auth.authEnable());
    }

    private static void logins(T t) throws Exception {
        T.Logins logins = new T.Logins();
        Client client =
            t.plain(builder -> builder.user(bytes("user")).password(bytes(PASSWORD)).interceptor(logins));
        KV kv = client.getKVClient();
        must(kv.put(t.key("k"), bytes("v")));
        for (int n = 0; n < 10; n++) {
            equal("the value", text(must(kv.get(t.key("k"))).getKvs().get(0).getValue()), "v");
        }
        equal("logins", logins.count(), 1);
        equal("another user sees it",
            text(must(t.as("reader", PASSWORD).getKVClient().get(t.key("k"))).getKvs().get(0).getValue()), "v");
    }

    private static void wrongPasswords(T t) throws Exception {
        Client client = t.as("user", "wrong");
        refused("a wrong password", client.getKVClient().get(t.key("k")), Code.INVALID_ARGUMENT, WRONG);
        refused("what jetcd makes of it", client.getKVClient().get(t.key("k")), Code.UNAUTHENTICATED, null);
        refused("a put", client.getKVClient().put(t.key("k"), bytes("v")), Code.INVALID_ARGUMENT, WRONG);
        Client stranger = t.as("stranger", PASSWORD);
        refused("no such user", stranger.getKVClient().get(t.key("k")), Code.INVALID_ARGUMENT, WRONG);
        refused("a lease", stranger.getLeaseClient().grant(60), Code.INVALID_ARGUMENT, WRONG);
        must(t.user().getKVClient().get(t.key("k")));
    }

    /** A client that never logs in, and one whose token nobody issued. */
    private static void nobody(T t) throws Exception {
        String empty = "etcdserver: user name is empty";
        Client client = t.plain(builder -> builder);
        refused("a put", client.getKVClient().put(t.key("k"), bytes("v")), Code.INVALID_ARGUMENT, empty);
        refused("a get", client.getKVClient().get(t.key("k")), Code.INVALID_ARGUMENT, empty);
        refused("a deletion", client.getKVClient().delete(t.key("k")), Code.INVALID_ARGUMENT, empty);
        refused("users", client.getAuthClient().userList(), Code.INVALID_ARGUMENT, empty);
        refused("turning it off", client.getAuthClient().authDisable(), Code.INVALID_ARGUMENT, empty);
        // jetcd tries a call with such a token again and again, as it would log in if it could.
        Client forged = t.plain(builder -> builder.header("token", "forged.1").retryMaxAttempts(1));
        refused("a forged token", forged.getKVClient().get(t.key("k")),
            Code.UNAUTHENTICATED, "etcdserver: invalid auth token");
    }

    private static void allowedAndDenied(T t) throws Exception {
        KV root = t.root().getKVClient();
        KV user = t.user().getKVClient();
        KV reader = t.as("reader", PASSWORD).getKVClient();
        ByteSequence secret = bytes("secret/k");
        must(root.put(secret, bytes("hidden")));
        must(user.put(t.key("k"), bytes("v")));
        equal("a reader reads", must(reader.get(t.key("k"))).getCount(), 1L);
        refused("a reader's put", reader.put(t.key("k"), bytes("x")), Code.PERMISSION_DENIED, DENIED);
        refused("a reader's deletion", reader.delete(t.key("k")), Code.PERMISSION_DENIED, DENIED);
        refused("another's key", user.get(secret), Code.PERMISSION_DENIED, DENIED);
        refused("a put there", user.put(secret, bytes("x")), Code.PERMISSION_DENIED, DENIED);
        refused("a deletion there", user.delete(secret), Code.PERMISSION_DENIED, DENIED);
        GetOption across = GetOption.builder().withRange(bytes("t")).build();
        refused("a range across", user.get(bytes("r"), across), Code.PERMISSION_DENIED, DENIED);
        GetOption count = GetOption.builder().withRange(bytes("t")).withCountOnly(true).withSerializable(true).build();
        refused("its count", user.get(bytes("r"), count), Code.PERMISSION_DENIED, DENIED);
        refused("all keys", user.get(bytes("\0"), GetOption.builder().withRange(bytes("\0")).build()),
            Code.PERMISSION_DENIED, DENIED);
        refused("a deletion across", user.delete(bytes("r"), DeleteOption.builder().withRange(bytes("t")).build()),
            Code.PERMISSION_DENIED, DENIED);
        equal("nothing has changed", text(must(root.get(secret)).getKvs().get(0).getValue()), "hidden");
        equal("nor here", text(must(user.get(t.key("k"))).getKvs().get(0).getValue()), "v");
    }

    private static void transactionsDenied(T t) throws Exception {
        KV root = t.root().getKVClient();
        KV user = t.user().getKVClient();
        KV reader = t.as("reader", PASSWORD).getKVClient();
        ByteSequence secret = bytes("secret/k");
        ByteSequence key = t.key("k");
        must(root.put(secret, bytes("hidden")));
        Cmp mine = new Cmp(key, Cmp.Op.EQUAL, CmpTarget.version(0));
        Cmp theirs = new Cmp(secret, Cmp.Op.GREATER, CmpTarget.version(0));
        Op put = Op.put(key, bytes("v"), PutOption.DEFAULT);
        Op hidden = Op.get(secret, GetOption.DEFAULT);
        refused("a compare", user.txn().If(theirs).Then(put).commit(), Code.PERMISSION_DENIED, DENIED);
        refused("the branch taken", user.txn().If(mine).Then(put, hidden).commit(), Code.PERMISSION_DENIED, DENIED);
        refused("the branch not taken", user.txn().If(mine).Then(put).Else(hidden).commit(),
            Code.PERMISSION_DENIED, DENIED);
        Op nested = Op.txn(new Cmp[] {mine}, new Op[] {put}, new Op[] {hidden});
        refused("a branch within", user.txn().Then(nested).commit(), Code.PERMISSION_DENIED, DENIED);
        refused("a reader's put", reader.txn().If(mine).Then(put).commit(), Code.PERMISSION_DENIED, DENIED);
        equal("nothing was written", must(user.get(key)).getCount(), 0L);
        holds("what is allowed succeeds", must(user.txn().If(mine).Then(put).commit()).isSucceeded());
        Op get = Op.get(key, GetOption.DEFAULT);
        equal("a reader's get", must(reader.txn().Then(get).commit()).getGetResponses().get(0).getCount(), 1L);
    }

    /** A change of a role counts at once, for clients that are logged in already. */
    private static void rightsChange(T t) throws Exception {
        Auth auth = t.root().getAuthClient();
        T.Logins logins = new T.Logins();
        KV kv = t.plain(builder -> builder.user(bytes("changing")).password(bytes(PASSWORD)).interceptor(logins))
            .getKVClient();
        refused("no right yet", kv.put(t.key("k"), bytes("v")), Code.PERMISSION_DENIED, DENIED);
        grant(auth, "changes", t.prefix, Permission.Type.WRITE);
        must(kv.put(t.key("k"), bytes("v")));
        refused("writing is not reading", kv.get(t.key("k")), Code.PERMISSION_DENIED, DENIED);
        grant(auth, "changes", t.prefix, Permission.Type.READWRITE);
        must(kv.get(t.key("k")));
        must(auth.roleRevokePermission(bytes("changes"), bytes(t.prefix), endOf(t.prefix)));
        refused("the right is gone", kv.get(t.key("k")), Code.PERMISSION_DENIED, DENIED);
        grant(auth, "changes", t.prefix, Permission.Type.READ);
        must(kv.get(t.key("k")));
        must(auth.userRevokeRole(bytes("changing"), bytes("changes")));
        refused("the role is gone", kv.get(t.key("k")), Code.PERMISSION_DENIED, DENIED);
        must(auth.userGrantRole(bytes("changing"), bytes("changes")));
        must(kv.get(t.key("k")));
        equal("logins", logins.count(), 1);
    }

    private static void administration(T t) throws Exception {
        Auth user = t.user().getAuthClient();
        refused("a user's new user", user.userAdd(bytes("x"), bytes("y")), Code.PERMISSION_DENIED, DENIED);
        refused("a user's new role", user.roleAdd(bytes("x")), Code.PERMISSION_DENIED, DENIED);
        refused("another's password", user.userChangePassword(bytes("root"), bytes("y")), Code.PERMISSION_DENIED, DENIED);
        refused("all users", user.userList(), Code.PERMISSION_DENIED, DENIED);
        refused("turning it off", user.authDisable(), Code.PERMISSION_DENIED, DENIED);
        equal("oneself", must(user.userGet(bytes("user"))).getRoles(), List.of("writes"));
        refused("another", user.userGet(bytes("root")), Code.PERMISSION_DENIED, DENIED);
        equal("one's role", must(user.roleGet(bytes("writes"))).getPermissions().size(), 2);
        refused("another's role", user.roleGet(bytes("reads")), Code.PERMISSION_DENIED, DENIED);

        Auth root = t.root().getAuthClient();
        must(root.userAdd(bytes("passing"), bytes(PASSWORD)));
        must(root.roleAdd(bytes("brief")));
        must(root.userGrantRole(bytes("passing"), bytes("brief")));
        must(root.roleDelete(bytes("brief")));
        equal("a role that is gone", must(root.userGet(bytes("passing"))).getRoles(), List.of());
        must(root.userDelete(bytes("passing")));
        refused("a user that is gone", root.userGet(bytes("passing")),
            Code.FAILED_PRECONDITION, "etcdserver: user name not found");
        refused("a role that is gone", root.roleGet(bytes("brief")),
            Code.FAILED_PRECONDITION, "etcdserver: role name not found");
        refused("the last root", root.userDelete(bytes("root")),
            Code.INVALID_ARGUMENT, "etcdserver: invalid auth management");
        equal("roles", must(root.roleList()).getRoles(), List.of("changes", "reads", "root", "writes"));
    }

    /** A new password ends the user's tokens. jetcd knows no other sign than the error, and logs in again. */
    private static void passwordEndsToken(T t) throws Exception {
        Auth auth = t.root().getAuthClient();
        must(auth.userAdd(bytes("renewed"), bytes(PASSWORD)));
        must(auth.userGrantRole(bytes("renewed"), bytes("writes")));
        T.Logins logins = new T.Logins();
        Client client =
            t.plain(builder -> builder.user(bytes("renewed")).password(bytes(PASSWORD)).interceptor(logins));
        must(client.getKVClient().put(t.key("k"), bytes("1")));
        equal("logins", logins.count(), 1);
        must(auth.userChangePassword(bytes("renewed"), bytes(PASSWORD)));
        must(client.getKVClient().put(t.key("k"), bytes("2")));
        equal("logins after the password was set again", logins.count(), 2);
        must(auth.userChangePassword(bytes("renewed"), bytes("another")));
        refused("a get with the old one", client.getKVClient().get(t.key("k")), Code.INVALID_ARGUMENT, WRONG);
        Client other = t.as("renewed", "another");
        equal("with the new one", text(must(other.getKVClient().get(t.key("k"))).getKvs().get(0).getValue()), "2");
        must(auth.userDelete(bytes("renewed")));
    }

    /**
     * A token that nobody uses ends. Nothing but a use shows whether one has, and a use makes it last longer; so it is looked at
     * ever more rarely, until it has.
     */
    private static void timeEndsToken(T t) throws Exception {
        Auth auth = t.plain(builder -> builder.endpoints(t.place.brief())).getAuthClient();
        must(auth.userAdd(bytes("root"), bytes(PASSWORD)));
        must(auth.roleAdd(bytes("root")));
        must(auth.userGrantRole(bytes("root"), bytes("root")));
        must(auth.authEnable());
        T.Logins logins = new T.Logins();
        KV kv = t.plain(builder -> builder.endpoints(t.place.brief()).user(bytes("root")).password(bytes(PASSWORD))
            .interceptor(logins)).getKVClient();
        must(kv.put(t.key("k"), bytes("v")));
        for (int pause = 1; logins.count() == 1; pause *= 2) {
            holds("a token ends within minutes", pause < 100);
            TimeUnit.SECONDS.sleep(pause);
            equal("the value, with whatever token",
                text(must(kv.get(t.key("k"))).getKvs().get(0).getValue()), "v");
        }
        must(kv.put(t.key("k"), bytes("w")));
    }

    /** jetcd logs in for each call that it makes before it has a token: here 50 times, of which one suffices. */
    private static void manyAtOnce(T t) throws Exception {
        T.Logins logins = new T.Logins();
        KV kv = t.plain(builder -> builder.user(bytes("user")).password(bytes(PASSWORD)).interceptor(logins)).getKVClient();
        for (int round = 0; round < 5; round++) {
            List<CompletableFuture<GetResponse>> calls = IntStream.range(50 * round, 50 * round + 50)
                .mapToObj(n -> kv.put(t.key("k" + n), bytes("v" + n)).thenCompose(done -> kv.get(t.key("k" + n))))
                .toList();
            for (int n = 0; n < calls.size(); n++) {
                equal("a value", text(must(calls.get(n)).getKvs().get(0).getValue()), "v" + (50 * round + n));
            }
        }
        holds("logins: " + logins.count(), logins.count() <= 50);
        GetOption all = GetOption.builder().isPrefix(true).withCountOnly(true).build();
        equal("all of them", must(kv.get(bytes(t.prefix), all)).getCount(), 250L);
    }
}
