//! placeholder

mod commands;
mod store_contract;
mod support {
    pub(crate) mod databases;
}
