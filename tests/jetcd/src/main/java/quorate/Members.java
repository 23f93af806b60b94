package quorate;

import static quorate.Rights.DENIED;
import static quorate.T.bytes;
import static quorate.T.equal;
import static quorate.T.holds;
import static quorate.T.must;
import static quorate.T.refused;

import io.etcd.jetcd.Client;
import io.etcd.jetcd.Maintenance;
import io.etcd.jetcd.cluster.Member;
import io.etcd.jetcd.maintenance.StatusResponse;
import io.grpc.Status.Code;
import java.util.List;

/** The member's status and the membership. */
final class Members {
    static final List<Main.Test> TESTS = List.of(
        new Main.Test("status", Members::status),
        new Main.Test("membership", Members::membership),
        new Main.Test("maintenance-denied", Members::denied),
        new Main.Test("authentication-off", Members::off));

    private Members() {
    }

    private static void status(T t) throws Exception {
        for (Client client : List.of(t.root(), t.user())) {
            StatusResponse status = must(client.getMaintenanceClient().statusMember(t.place.plain()));
            equal("version", status.getVersion(), "3.7.3");
            holds("size: " + status.getDbSize(), status.getDbSize() > 0);
            holds("a leader", status.getLeader() != 0 && status.getLeader() == status.getHeader().getMemberId());
            holds("an index", status.getRaftIndex() > 0 && status.getRaftAppliedIndex() > 0);
            equal("errors", status.getErrorList(), List.of());
            holds("a voter", !status.isLearner());
        }
        StatusResponse secure =
            must(t.secure("alice", builder -> builder).getMaintenanceClient().statusMember(t.place.secure()));
        equal("version over TLS", secure.getVersion(), "3.7.3");
        Maintenance root = t.root().getMaintenanceClient();
        equal("alarms", must(root.listAlarms()).getAlarms(), List.of());
        int hash = must(root.hashKV(t.place.plain(), 0)).getHash();
        equal("the same hash again", must(root.hashKV(t.place.plain(), 0)).getHash(), hash);
    }

    private static void membership(T t) throws Exception {
        for (Client client : List.of(t.root(), t.user(), t.secure("alice", builder -> builder))) {
            List<Member> members = must(client.getClusterClient().listMember()).getMembers();
            equal("members", members.size(), 1);
            List<String> addresses = members.get(0).getClientURIs().stream().map(Object::toString).toList();
            holds("where clients find it: " + addresses,
                addresses.contains(t.place.plain()) && addresses.contains(t.place.secure()));
        }
    }

    private static void denied(T t) throws Exception {
        Client user = t.user();
        refused("removing a member", user.getClusterClient().removeMember(1), Code.PERMISSION_DENIED, DENIED);
        refused("a hash", user.getMaintenanceClient().hashKV(t.place.plain(), 0), Code.PERMISSION_DENIED, DENIED);
        refused("moving the leader", user.getMaintenanceClient().moveLeader(1), Code.PERMISSION_DENIED, DENIED);
        refused("root removes a member that is not there", t.root().getClusterClient().removeMember(1),
            Code.NOT_FOUND, "etcdserver: member not found");
        Client nobody = t.plain(builder -> builder);
        String empty = "etcdserver: user name is empty";
        refused("nobody's list of members", nobody.getClusterClient().listMember(), Code.INVALID_ARGUMENT, empty);
        refused("nobody's alarms", nobody.getMaintenanceClient().listAlarms(), Code.INVALID_ARGUMENT, empty);
        refused("nobody's status", nobody.getMaintenanceClient().statusMember(t.place.plain()),
            Code.INVALID_ARGUMENT, empty);
    }

    /** The last test: turning it off makes everybody free, also clients that go on sending a token. */
    private static void off(T t) throws Exception {
        Client user = t.user();
        must(user.getKVClient().put(t.key("k"), bytes("v")));
        Client root = t.root();
        must(root.getAuthClient().authDisable());
        must(user.getKVClient().put(bytes("secret/k"), bytes("v")));
        must(t.plain(builder -> builder).getKVClient().get(bytes("secret/k")));
        must(t.secure("stranger", builder -> builder).getKVClient().get(bytes("secret/k")));
        must(t.plain(builder -> builder).getAuthClient().authEnable());
        refused("on again", t.plain(builder -> builder).getKVClient().get(bytes("secret/k")),
            Code.INVALID_ARGUMENT, "etcdserver: user name is empty");
        refused("for users too", user.getKVClient().get(bytes("secret/k")), Code.PERMISSION_DENIED, DENIED);
    }
}
