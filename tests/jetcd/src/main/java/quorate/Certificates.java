package quorate;

import static quorate.Rights.DENIED;
import static quorate.Rights.PASSWORD;
import static quorate.T.bytes;
import static quorate.T.equal;
import static quorate.T.faults;
import static quorate.T.holds;
import static quorate.T.must;
import static quorate.T.refused;
import static quorate.T.text;

import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.grpc.Status.Code;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/** Mutual TLS, and the name in a certificate as the user. */
final class Certificates {
    static final List<Main.Test> TESTS = List.of(
        new Main.Test("certificate-is-the-user", Certificates::isTheUser),
        new Main.Test("certificate-of-nobody", Certificates::ofNobody),
        new Main.Test("certificate-and-password", Certificates::andPassword),
        new Main.Test("no-certificate", Certificates::none),
        new Main.Test("certificate-of-others", Certificates::ofOthers));

    private Certificates() {
    }

    private static void isTheUser(T t) throws Exception {
        KV kv = t.secure("alice", builder -> builder).getKVClient();
        must(kv.put(t.key("k"), bytes("v")));
        equal("the value", text(must(kv.get(t.key("k"))).getKvs().get(0).getValue()), "v");
        refused("another's key", kv.get(bytes("secret/k")), Code.PERMISSION_DENIED, DENIED);
        Client root = t.secure("root", builder -> builder);
        must(root.getKVClient().put(bytes("secret/k"), bytes("v")));
        holds("root lists users", must(root.getAuthClient().userList()).getUsers().contains("alice"));
    }

    /** A certificate whose name is no user's. */
    private static void ofNobody(T t) throws Exception {
        Client client = t.secure("stranger", builder -> builder);
        refused("a put", client.getKVClient().put(t.key("k"), bytes("v")), Code.PERMISSION_DENIED, DENIED);
        refused("a get", client.getKVClient().get(t.key("k")), Code.PERMISSION_DENIED, DENIED);
        refused("users", client.getAuthClient().userList(), Code.FAILED_PRECONDITION, "etcdserver: user name not found");
    }

    /** A token comes before a certificate. */
    private static void andPassword(T t) throws Exception {
        Client reader =
            t.secure("root", builder -> builder.user(bytes("reader")).password(bytes(PASSWORD)));
        refused("a put", reader.getKVClient().put(t.key("k"), bytes("v")), Code.PERMISSION_DENIED, DENIED);
        must(reader.getKVClient().get(t.key("k")));
        Client root = t.secure("stranger", builder -> builder.user(bytes("root")).password(bytes(PASSWORD)));
        must(root.getKVClient().put(bytes("secret/k"), bytes("v")));
        Client wrong = t.secure("alice", builder -> builder.user(bytes("root")).password(bytes("wrong")));
        refused("a wrong password", wrong.getKVClient().get(t.key("k")),
            Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password");
    }

    /** Nobody gets in without a certificate: not even to log in. */
    private static void none(T t) throws Exception {
        Client client = t.secure(null, builder -> builder.waitForReady(false).retryMaxAttempts(1));
        unavailable("a get", client.getKVClient().get(t.key("k")));
        Client login = t.secure(null, builder -> builder.waitForReady(false).retryMaxAttempts(1)
            .user(bytes("root")).password(bytes(PASSWORD)));
        unavailable("a login", login.getKVClient().get(t.key("k")));
    }

    private static void ofOthers(T t) throws Exception {
        Client client = t.secure("other/alice", builder -> builder.waitForReady(false).retryMaxAttempts(1));
        unavailable("a get", client.getKVClient().get(t.key("k")));
    }

    /** How a connection fails depends on when the server's alert arrives, so the text does not count. */
    private static void unavailable(String what, CompletableFuture<?> call) throws Exception {
        try {
            throw new T.Failure(what + ": got " + call.get(1, TimeUnit.MINUTES));
        } catch (ExecutionException why) {
            List<String> faults = faults(why);
            holds(what + " is not answered: " + faults, faults.stream().anyMatch(one -> one.startsWith("UNAVAILABLE: ")));
        }
    }
}
