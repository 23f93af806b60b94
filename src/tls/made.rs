//! What the certificates that are made here have in common: their dates, and the parameters of a server's.

use crate::clock;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose,
};
use time::OffsetDateTime;

/// Certificates are valid from a day before they are made: clocks differ.
const SKEW_DAYS: u64 = 1;
const DAY_SECS: u64 = 86_400;
/// The last day that a certificate can name: dates beyond the year 9999 do not exist there.
const LAST_DAY: u64 = 2_932_896;

/// The time at which the day that comes `days` after 1 January 1970 begins.
pub(crate) fn midnight(days: u64) -> OffsetDateTime {
    let secs = i64::try_from(days.min(LAST_DAY) * DAY_SECS).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp(secs).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Today, in days since 1 January 1970.
pub(crate) fn today() -> u64 {
    clock::unix_time().as_secs() / DAY_SECS
}

/// Makes it valid for so many days, from a day ago on: clocks differ. Tests use zero days: a validity that has ended already.
pub(crate) fn valid_for(params: &mut CertificateParams, days: u64) {
    let today = today();
    params.not_before = midnight(today.saturating_sub(SKEW_DAYS));
    params.not_after = match days {
        0 => params.not_before,
        days => midnight(today.saturating_add(days)),
    };
}

/// A server's certificate for `hosts`. Without a common name: etcd's gateway would take it for a user.
pub(crate) fn server_params(hosts: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Quorate");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (days, year, month, day) in [
            (0, 1970, 1, 1),
            (59, 1970, 3, 1),
            (11_016, 2000, 2, 29),
            (20_513, 2026, 3, 1),
            (u64::MAX, 9999, 12, 31),
        ] {
            assert_eq!(
                midnight(days),
                rcgen::date_time_ymd(year, month, day),
                "{days}"
            );
        }
    }
}
