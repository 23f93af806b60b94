//! `Maintenance.Downgrade`.
//!
//! etcd can prepare its data for the release before its own. Quorate has no data of etcd's and no such release: whether a version
//! could be the target is answered as by etcd, and the downgrade itself is refused.

use super::{Api, ETCD_CLUSTER_VERSION, proto::etcdserverpb as pb, status::Status};
use pb::downgrade_request::DowngradeAction;

impl Api {
    pub async fn downgrade(
        &self,
        request: pb::DowngradeRequest,
    ) -> Result<pb::DowngradeResponse, Status> {
        self.require_vote()?;
        match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => self.check_target(&request.version).await?,
            Ok(DowngradeAction::Enable) => {
                self.check_target(&request.version).await?;
                return Err(Status::no_downgrade());
            }
            // etcd: this succeeds, too, if there is nothing to cancel.
            Ok(DowngradeAction::Cancel) => {}
            Err(_) => return Err(Status::unknown_downgrade_action()),
        }
        let (major, minor) = own_release();
        Ok(pb::DowngradeResponse {
            header: Some(self.header_now()),
            version: format!("{major}.{minor}"),
        })
    }

    /// Only the release before the cluster's could be the target. etcd: the answer is linearizable.
    async fn check_target(&self, version: &str) -> Result<(), Status> {
        let target = release(version).ok_or_else(Status::downgrade_format)?;
        self.requests.probe(false).await?;
        let (major, minor) = own_release();
        if target == (major, minor - 1) {
            Ok(())
        } else {
            Err(Status::downgrade_target())
        }
    }
}

fn own_release() -> (i64, i64) {
    release(ETCD_CLUSTER_VERSION).expect("the version of the cluster is one")
}

/// Major and minor number of a version. etcd: `MAJOR.MINOR`, or a semantic version, whose other parts do not count.
fn release(version: &str) -> Option<(i64, i64)> {
    semantic(version).or_else(|| semantic(&format!("{version}.0")))
}

fn semantic(version: &str) -> Option<(i64, i64)> {
    let (rest, metadata) = version.split_once('+').unwrap_or((version, ""));
    let (numbers, release) = rest.split_once('-').unwrap_or((rest, ""));
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if !metadata.chars().all(fits) || !release.chars().all(fits) {
        return None;
    }
    let mut numbers = numbers.splitn(3, '.').map(str::parse::<i64>);
    let mut number = || numbers.next()?.ok();
    let (major, minor, _) = (number()?, number()?, number()?);
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_by_etcd() {
        for text in ["3.6", "3.6.0", "3.6.17", "03.6", "3.6.0-rc.1", "3.6.0+b-1"] {
            assert_eq!(release(text), Some((3, 6)), "{text}");
        }
        for text in [
            "",
            "3",
            "3.",
            "3.x",
            "v3.6",
            "3.6.0.0",
            "3.6-rc",
            "3.-6",
            "3.6.0-r c",
            " 3.6",
            "3.6.0+ä",
        ] {
            assert_eq!(release(text), None, "{text}");
        }
        assert_eq!(own_release(), (3, 7));
    }
}
