//! Reads PEM blocks: from a file, or out of the configuration.

use crate::disk;
use crate::model::tls::Pem;

/// The bytes of a PEM; the message is about it by name.
pub(crate) fn read(pem: &Pem) -> Result<Vec<u8>, String> {
    match pem {
        Pem::Inline { bytes, .. } => Ok(bytes.to_vec()),
        Pem::File(path) => {
            disk::bytes(&path.value, MAX_BYTES).map_err(|error| format!("can't be read: {error}"))
        }
    }
}

/// Far above any certificate, list or bundle.
const MAX_BYTES: u64 = 16 << 20;
