//! Everything that serves calls on one API arbiter.

use super::{Api, services::Services};
use std::rc::Rc;

/// The calls of one API arbiter, as the transports reach them.
#[derive(Debug)]
pub struct Front {
    /// The calls themselves: for spliced services and plain HTTP.
    pub api: Rc<Api>,
    /// The services that tonic serves.
    pub services: Services,
}

impl Front {
    pub fn new(api: Api) -> Self {
        let services = Services::new(&api);
        Self {
            api: Rc::new(api),
            services,
        }
    }
}
