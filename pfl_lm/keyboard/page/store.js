// What this browser keeps of taking part: the device's key, its record, and whether it is switched on.
// One small database; a write is on the disk when its promise is kept.

const NAME = "pfl-lm take part", TABLE = "kept";

const result = (request) => new Promise((kept, broken) => {
  request.onsuccess = () => kept(request.result);
  request.onerror = () => broken(request.error);
});

export class Store {
  static async open() {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE);
    const store = new Store();
    store.database = await result(request);
    return store;
  }

  async read(name) {
    const found = await result(this.database.transaction(TABLE).objectStore(TABLE).get(name));
    return found ?? null;
  }

  // Write a value, or remove it where it is null.
  write(name, value) {
    return new Promise((kept, broken) => {
      const change = this.database.transaction(TABLE, "readwrite", { durability: "strict" });
      change.oncomplete = () => kept();
      change.onabort = change.onerror = () => broken(change.error);
      const table = change.objectStore(TABLE);
      if (value === null) table.delete(name);
      else table.put(value, name);
    });
  }

  // A place for the participation record, as web_device/record.mjs asks for it.
  record() {
    return { read: () => this.read("record"), write: (content) => this.write("record", content) };
  }
}
