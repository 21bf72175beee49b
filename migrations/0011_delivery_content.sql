-- SHA-256 of a delivery's payload. The id of a delivery is a header, which the sender's signature does not cover: the same signed
-- body under another id is the same delivery.
ALTER TABLE webhook_deliveries ADD COLUMN content BLOB;
CREATE UNIQUE INDEX webhook_deliveries_content ON webhook_deliveries (content) WHERE content IS NOT NULL;
