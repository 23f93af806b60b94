//! The settings of JWT, and its keys as they are at the start.

use super::error::StartError;
use crate::{
    actors::jwt_keys::{JwtKeys, JwtSettings},
    config::{Config, TokenKind},
    jwt::Algorithm,
};
use std::sync::Arc;

/// Reads the keys; `None` if tokens are not signed.
pub(super) fn keys(config: &Config) -> Result<Option<Arc<JwtKeys>>, StartError> {
    let TokenKind::Jwt(jwt) = &config.auth.token else {
        return Ok(None);
    };
    let algorithm = Algorithm::named(&jwt.sign_method);
    let keys = JwtKeys::open(JwtSettings {
        algorithm: algorithm.expect("the configuration has checked the name"),
        private_key: jwt.private_key.clone(),
        public_keys: jwt.public_keys.clone(),
        ttl: jwt.ttl,
        refuse_readable_keys: config.refuse_readable_keys,
    })?;
    if jwt.private_key.is_none() {
        tracing::info!("JWT without a private key: tokens are taken, and Authenticate issues none");
    }
    Ok(Some(keys))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SIGN_METHODS;

    #[test]
    fn every_method_that_can_be_set_is_known() {
        for name in SIGN_METHODS {
            let known = Algorithm::named(name).map(Algorithm::name);
            assert_eq!(known, Some(name));
        }
    }
}
