//! placeholder

mod store_contract;
mod support {
    pub(crate) mod databases;
}
