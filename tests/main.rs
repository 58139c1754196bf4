//! The promises, each a sentence, kept by real clients against a real relay and real databases.

mod commands;
mod documents;
mod store_contract;
mod support {
    pub(crate) mod databases;
}
