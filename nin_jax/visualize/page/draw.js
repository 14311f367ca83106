// A canvas to draw on, with a pointer or the keyboard.

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Black ink on white; `dot` marks the keyboard's pen. Calls `changed` after each stroke. */
export function drawable(canvas, dot, changed) {
  const context = canvas.getContext('2d', { willReadFrequently: true });
  let last = null; // where the pointer was, while it is down
  let pen = { x: canvas.width / 2, y: canvas.height / 4, down: false }; // the keyboard's

  function clear() {
    context.fillStyle = 'white';
    context.fillRect(0, 0, canvas.width, canvas.height);
    pen = { x: canvas.width / 2, y: canvas.height / 4, down: false };
    dot.hidden = true;
  }

  function mark() {
    const scale = canvas.clientWidth / canvas.width;
    dot.style.left = `${canvas.offsetLeft + canvas.clientLeft + pen.x * scale}px`;
    dot.style.top = `${canvas.offsetTop + canvas.clientTop + pen.y * scale}px`;
    dot.classList.toggle('down', pen.down);
    dot.hidden = false;
  }

  function line(from, to) {
    context.strokeStyle = 'black';
    context.lineWidth = canvas.width / 14;
    context.lineCap = context.lineJoin = 'round';
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    return {
      x: (event.clientX - box.left) * canvas.width / box.width,
      y: (event.clientY - box.top) * canvas.height / box.height,
    };
  }

  canvas.addEventListener('pointerdown', (event) => {
    if (event.button || !event.isPrimary) return;
    dot.hidden = true;
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    line(last, last);
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!last || !event.isPrimary) return;
    const here = at(event);
    line(last, here);
    last = here;
  });
  for (const end of ['pointerup', 'pointercancel']) {
    canvas.addEventListener(end, (event) => {
      if (!event.isPrimary) return;
      if (last) changed();
      last = null;
    });
  }
  canvas.addEventListener('keydown', (event) => {
    const move = MOVES[event.key];
    if ((!move && event.key !== ' ') || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const from = { ...pen };
    if (move) {
      const step = canvas.width / 28;
      pen.x = Math.min(canvas.width, Math.max(0, pen.x + move[0] * step));
      pen.y = Math.min(canvas.height, Math.max(0, pen.y + move[1] * step));
    } else {
      pen.down = !pen.down;
    }
    mark();
    if (!pen.down) return;
    line(from, pen);
    changed();
  });
  clear();
  return { clear };
}
