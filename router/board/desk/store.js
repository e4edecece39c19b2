// The conversations of this browser, in IndexedDB. Knows nothing of what is in them but `id`, `machine` and `updated`.

const NAME = "homeport-desk";
const STORE = "conversations";

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export class Store {
  #db;

  constructor(db) {
    this.#db = db;
  }

  /** Rejects where the browser keeps nothing, as in some private windows. */
  static async open() {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORE, { keyPath: "id" }).createIndex("machine", "machine");
    };
    const db = await done(request);
    db.onversionchange = () => db.close();
    return new Store(db);
  }

  #in(mode) {
    return this.#db.transaction(STORE, mode).objectStore(STORE);
  }

  /** Of this machine, the latest first. */
  async all(machine) {
    const found = await done(this.#in("readonly").index("machine").getAll(machine));
    return found.sort((one, other) => other.updated - one.updated);
  }

  /** Undefined: there is none. */
  get(id) {
    return done(this.#in("readonly").get(id));
  }

  put(conversation) {
    return done(this.#in("readwrite").put(conversation));
  }

  remove(id) {
    return done(this.#in("readwrite").delete(id));
  }
}

/** In place of a Store where the browser keeps nothing: for as long as the page is open. */
export class Forgetful {
  #kept = new Map();

  async all(machine) {
    const found = [...this.#kept.values()].filter((each) => each.machine === machine);
    return found.sort((one, other) => other.updated - one.updated);
  }

  async get(id) {
    return this.#kept.get(id);
  }

  async put(conversation) {
    this.#kept.set(conversation.id, conversation);
  }

  async remove(id) {
    this.#kept.delete(id);
  }
}
