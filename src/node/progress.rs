//! What a starting member waits for, for its client port and for systemd.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddress, UnixDatagram},
    },
};
use tokio::sync::watch;

/// What a starting member waits for, for everybody who asks: its client port, and systemd.
/// Empty as long as it waits for nobody.
#[derive(Debug, Default)]
pub(super) struct Progress(watch::Sender<String>);

impl Progress {
    pub(super) fn follow(&self) -> watch::Receiver<String> {
        self.0.subscribe()
    }

    /// The member waits for this now.
    pub(super) fn waits_for(&self, what: &str) {
        let is_new = self.0.send_if_modified(|known| {
            let is_new = known != what;
            if is_new {
                what.clone_into(known);
            }
            is_new
        });
        if is_new {
            notify(&format!(
                "STATUS=not started yet: {}",
                what.replace('\n', " ")
            ));
        }
    }
}

/// Asks systemd for another minute, while a start makes progress that is slower than the time that systemd gives it.
pub(super) fn needs_time() {
    notify("EXTEND_TIMEOUT_USEC=60000000");
}

/// Notifies systemd, if the service is of a type that waits for it.
pub(super) fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let path = path.to_string_lossy();
    let address = match path.strip_prefix('@') {
        Some(name) => UnixAddress::from_abstract_name(name),
        None => UnixAddress::from_pathname(&*path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!("cannot notify systemd at {path}: {error}");
    }
}
