class Online {
  /** Whether the browser has a network at all; sockets may take half a minute to notice. */
  yes = $state(navigator.onLine);

  constructor() {
    addEventListener('online', () => (this.yes = true));
    addEventListener('offline', () => (this.yes = false));
  }
}

export const online = new Online();
